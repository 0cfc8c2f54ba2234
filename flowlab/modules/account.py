"""Where along a user's model the gradient is lost and gained, for the waterfall of a ledger."""

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import by_seed
from flowlab.analysis.verdicts import view
from flowlab.errors import InputError
from flowlab.schema import DELTA


def account(table: pd.DataFrame) -> pd.DataFrame:
    """What each module, or repeated block, of one run adds to log10‖δ‖ going backward.

    One row for each seed and module but the first, with the columns that
    :func:`flowlab.figures.waterfall.waterfall` and the ledger share: ``position`` counts from the
    output, ``kind`` is the type, ``log10_gain`` log10‖δ‖ at the output of the module that ran
    before, minus that at the module's own. In a chain this is the module's own gain; where paths
    part and join it is that of all that lies between the two outputs. Gains add up to
    ``log10_end_to_end`` exactly. Raises InputError for a table of several runs, and of one place.
    """
    rows = view(table)[0]
    rows = rows[rows[DELTA].notna() | rows["status"].isin(["nonfinite", "underflow", "lost"])]
    norms = by_seed(rows, DELTA)
    places = norms.columns.to_numpy()
    if len(places) < 2:
        raise InputError(f"table must hold δ at two modules at least; got {len(places)}")
    named = rows.drop_duplicates("layer", keep="last").set_index("layer").loc[places]
    backward = slice(None, 0, -1)
    values = norms.to_numpy()
    with np.errstate(invalid="ignore"):
        gains = (values[:, :-1] - values[:, 1:])[:, ::-1]
        whole = values[:, 0] - values[:, -1]
    seeds, entries = gains.shape
    kinds = named["op"].to_numpy(object)[backward]
    paths = named["module"].to_numpy(object)[backward]
    return pd.DataFrame(
        {
            "run": rows["run"].iloc[0],
            "seed": np.repeat(norms.index.to_numpy(), entries),
            "layer": np.tile(places[backward], seeds),
            "position": np.tile(np.arange(1, entries + 1), seeds),
            "op": np.tile(paths, seeds),
            "kind": np.tile(kinds, seeds),
            "counted": True,
            "log10_gain": gains.ravel(),
            "log10_cumulative": np.cumsum(gains, axis=1).ravel(),
            "log10_end_to_end": np.repeat(whole, entries),
            "status": np.where(np.isfinite(gains.ravel()), "ok", "nonfinite"),
        }
    )
