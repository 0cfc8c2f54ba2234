"""Tables of probes made up so that what is to be found in them is known."""

import pandas as pd

from flowlab.modules.probing import Probe
from flowlab.modules.table import joined, of_rows, silent


def table(slopes, depth, level=0.0, noise=0.0, rng=None, status="ok"):
    """A run of nets of ``depth`` blocks, log10‖δ‖ of each seed on a line of its slope."""
    tables = []
    for seed, slope in enumerate(slopes):
        rows = []
        for block in range(1, depth + 1):
            value = level + slope * (depth - block) + (noise * rng.normal() if noise else 0.0)
            place = {"module": f"blocks.{block - 1}", "op": "Block", "use": 1, "block": block}
            place |= {"layer": block, "status": status if block == 1 else "ok"}
            rows.append({**place, "delta_log10_norm": value})
        head = {"module": "head", "op": "Linear", "use": 1, "layer": depth + 1, "status": "ok"}
        rows.append({**head, "delta_log10_norm": 3.0})  # another shape: no part of the slope
        axes = {"network": "Made", "depth": depth, "seeds": len(slopes)}
        tables.append(of_rows(rows, seed=seed, axes=axes))
    return joined(tables)


def probe(slopes, depths=(3, 6), **options):
    """The probe of nets of ``depths`` with a slope for each seed."""
    tables = [table(slopes, depth, **options) for depth in depths]
    nothing = [silent(of, "made up") for of in tables]
    return Probe(pd.concat(tables, ignore_index=True), pd.concat(nothing, ignore_index=True))
