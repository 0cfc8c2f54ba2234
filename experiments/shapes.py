"""Show shapes, forward and backward, of a linear layer or of every layer of a net.

Dimensions of one linear layer, or the settings of a run, which stand for a whole net.
"""

import sys

import numpy as np

from experiments.command import groups, guarded, keys, main
from experiments.help import Command, Option
from flowlab.errors import InputError, unknown
from flowlab.lessons import shapes, sharding
from flowlab.measurement.setup import prepare
from flowlab.settings import Settings

_COUNTS = "whole numbers from 1"
COMMAND = Command(
    "shapes",
    __doc__,
    {
        "": "the worked example, n=3 d1=2 d2=2, checked",
        "n=3 d1=4 d2=5": "another",
        "X=3x4 W=4x5": "another, by shapes",
        "shards=2 n=7": "one linear layer over several devices",
        "network=mlp depth=5": "every layer of a net",
    },
    {
        **dict.fromkeys(shapes.AXES, Option(None, "a dimension of the layer", _COUNTS)),
        **dict.fromkeys(shapes.OPERANDS, Option(None, "an array's shape", "such as 3x2")),
        "shards": Option(None, "devices over which the layer is split", _COUNTS),
    },
    composed=True,
)
_LINEAR = tuple(COMMAND.options)


def run(arguments: list[str]) -> int:
    """Show what the arguments ask for; the exit code."""
    if (answered := COMMAND.answer(arguments)) is not None:
        return answered
    names = [argument.partition("=")[0] for argument in arguments]
    linear = [name for name in names if name in _LINEAR]
    if len(linear) == len(names):
        return guarded(lambda: one_layer(arguments))
    if linear:
        return guarded(lambda: _refuse_mixture(linear[0], names))
    return main(network)


def one_layer(arguments: list[str]) -> None:
    """The linear layer of the given dimensions: example and derivation, or its sharding."""
    given = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise InputError(f"settings are written key=value; got {argument}")
        if name in given:
            raise InputError(f"{name} must be given once; got {argument} too")
        given[name] = _lengths(name, text)
    count = given.pop("shards", None)
    size = shapes.dimensions(**given)
    if count is None:
        example(**size)
        print()
        derivation(**size)
    else:
        sharded(count, **size)


def example(n: int, d1: int, d2: int) -> None:
    """Print the worked example with its checks; raise InputError beyond the sizes it takes."""
    arrays = shapes.worked_example(n, d1, d2)
    errors = shapes.differences(arrays)
    print("Y = X W + b with upstream dY of ones; dX = dY Wᵀ, dW = Xᵀ dY, db = Σ_batch dY.\n")
    for name, array in arrays.items():
        checked = ""
        if name in errors:
            oracle = "einsum" if name == "Y" else "finite differences"
            checked = f"   differs from {oracle} by {errors[name]:.0e}"
        print(f"{name} {array.shape}{checked}")
        print(f"  {np.array2string(array, prefix='  ')}")
    worst = np.max(list(errors.values()))
    print(f"\nLargest relative difference: {worst:.0e}")
    if not worst < shapes.TOLERANCE:
        sys.exit(f"error: the kernels differ from their oracles by {worst:.0e}")


def derivation(n: int, d1: int, d2: int) -> None:
    """Print every product of the right shape and how the adjoint is found among them."""
    table = shapes.derive(n, d1, d2)
    equal = ", ".join(shapes.coincidences(n, d1, d2)) or "n, d1 and d2 differ"
    print(f"Products of X, W, dY and their transposes with each gradient's shape ({equal}):")
    for gradient, rows in table.groupby("gradient", sort=False):
        linear, others = rows[rows["linear"]], rows.loc[~rows["linear"], "formula"]
        found = "one" if len(linear) == 1 else f"{len(linear)}, so the adjoint test decides"
        print(f"\n{gradient}: {found}")
        for row in linear.itertuples():
            mark = "   the adjoint" if row.adjoint else ""
            print(f"  {row.formula:<8} |⟨dY, Jv⟩ − ⟨G, v⟩| = {row.residual:.0e} ‖dY‖‖Jv‖{mark}")
        if len(others):
            print(f"  not linear in dY, so no gradient: {', '.join(others)}")


def sharded(count: int, n: int, d1: int, d2: int) -> None:
    """Print where a split layer must communicate, and what happens where it does not."""
    table = sharding.compare(n, d1, d2, count)
    print(f"Y = X W + b with X ({n}, {d1}) and W ({d1}, {d2}) over {count} devices.")
    print("Errors are relative to the whole layer's, with and without the pass's all-reduce.\n")
    lines = [("split", "pass", "all-reduced", "elements", "error", "without")]
    for row in table.itertuples():
        without = "" if np.isnan(row.without) else f"{row.without:.0e}"
        numbers = f"{row.elements:,}", f"{row.error:.0e}", without
        lines.append((row.split, row.direction, row.reduced, *numbers))
    _print_columns(lines)
    print(
        f"\nGathering Y of a split by columns, where it is needed whole, sends {n * d2:,} elements."
    )
    if n % count:
        off = sharding.mean_of_means(n, d1, d2, count)
        print(f"The parts of {n} examples are unequal: averaging their means is off by {off:.0e}.")
    worst = table["error"].max(skipna=False)
    if not worst < shapes.TOLERANCE:
        sys.exit(f"error: a split layer differs from the whole by {worst:.0e}")


def network(settings: Settings) -> None:
    """Print what the settings' network declares, its memory and what splitting it would send."""
    setup = prepare(settings, ensemble=False)
    net, shape = setup.network, setup.shape
    table = shapes.declared(net, shape)
    mib = np.dtype(settings.dtype).itemsize / 2**20
    lines = [("layers", "operations", "X -> Y", "dY -> dX", "W and dW", "parameters", "kept MiB")]
    for row in table.itertuples():
        layers = str(row.first) if row.first == row.last else f"{row.first}-{row.last}"
        weights = " ".join(f"{path.split('.')[-1]} {shape}" for path, shape in row.weights.items())
        ways = f"{row.x} -> {row.output}", f"{row.output} -> {row.x}"
        numbers = f"{row.parameters:,}", f"{row.kept * mib:,.3f}"
        lines.append((layers, row.operations, *ways, weights, *numbers))
    _print_columns(lines)
    elements = shapes.memory(table)
    elements["total"] = sum(elements.values())
    lines = [("memory", "elements", "MiB a seed", f"MiB, seeds={settings.seeds}")]
    for name, count in elements.items():
        one = count * mib
        lines.append((name, f"{count:,}", f"{one:,.3f}", f"{one * settings.seeds:,.3f}"))
    print("\nparameters and kept are of one layer; a run takes seeds in parts of memory_gib.\n")
    _print_columns(lines)
    lines = [("split over devices", "collective", "forward", "backward")]
    for layout in sharding.LAYOUTS:
        sums = sharding.communication(net, shape, layout).groupby("collective", sort=False)
        for collective, rows in sums[["forward", "backward"]].sum().iterrows():
            lines.append((layout, collective, f"{rows['forward']:,}", f"{rows['backward']:,}"))
    print("\nElements that its linear layers send, each split in the same way:\n")
    _print_columns(lines)


def _lengths(name: str, text: str) -> int | tuple[int, ...]:
    """``3`` for a dimension, ``3x2`` for a shape."""
    shape = name in shapes.OPERANDS
    parts = text.split("x") if shape else [text]
    try:
        lengths = tuple(int(part) for part in parts)
    except ValueError:
        rule = "a shape such as 3x2" if shape else "an integer"
        raise InputError(f"{name} must be {rule}; got {text or 'nothing'}") from None
    return lengths if shape else lengths[0]


def _refuse_mixture(linear: str, names: list[str]) -> None:
    """Settings of one layer beside settings of a network or misspelt ones."""
    other = next(name for name in names if name not in _LINEAR)
    if other not in (*keys(), *groups()):
        raise unknown("setting of one layer", other, _LINEAR)
    raise InputError(f"{linear} must stand without settings of a network; got {other}")


def _print_columns(lines: list[tuple[str, ...]]) -> None:
    """Aligned columns: numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, lines[-1], strict=True)
        aligned = (f"{c:>{w}}" if last[:1].isdigit() else f"{c:<{w}}" for c, w, last in cells)
        print("  ".join(aligned).rstrip())


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
