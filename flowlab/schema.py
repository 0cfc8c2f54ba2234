"""The columns of tables and the settings of runs: each named once, with its unit and meaning.

A part that measures something of its own adds its column by :func:`register`; the settings add
theirs. Whoever needs columns asks :func:`names` when it needs them, so that it sees them all.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd

from flowlab.errors import InputError, unknown

# The parts of a table, in the order of their columns; then what predictions and curves of training
# have beside these. Tables of a user's modules have those of OF_MODULES.
PARTS = ("run", "setting", "row", "module", "measured", "status", "predicted", "curve")
OF_MODULES = PARTS[:6]
_OF_TABLES = tuple(part for part in OF_MODULES if part != "module")


@dataclass(frozen=True)
class Column:
    """A column: its name, unit ("" for a pure number or text), meaning, pandas type and part."""

    name: str
    unit: str
    meaning: str
    dtype: str = "float64"
    part: str = "measured"


_COLUMNS: dict[str, Column] = {}


def register(*columns: Column) -> None:
    """Add columns, behind those of their part.

    Raises InputError for an unknown part and for a name that already means something else.
    """
    for column in columns:
        if column.part not in PARTS:
            raise InputError(f"part must be one of {', '.join(PARTS)}; got {column.part}")
        if _COLUMNS.setdefault(column.name, column) != column:
            raise InputError(f"a column's name must be new; got {column.name}, which is known")


def columns(*parts: str) -> dict[str, Column]:
    """The columns of ``parts`` (by default of a table) by name, in the order of the table."""
    chosen = parts or _OF_TABLES
    ordered = sorted(_COLUMNS.values(), key=lambda column: PARTS.index(column.part))
    return {column.name: column for column in ordered if column.part in chosen}


def names(*parts: str) -> list[str]:
    """The names of :func:`columns`."""
    return list(columns(*parts))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its columns in the types of the schema; those of others stay as they are."""
    known = columns(*PARTS)
    return table.astype({name: known[name].dtype for name in table if name in known})


def frame() -> pd.DataFrame:
    """Every column, predictions' too: name, unit, type, part and meaning."""
    found = pd.DataFrame([dataclasses.asdict(column) for column in columns(*PARTS).values()])
    return found.rename(columns={"dtype": "type"})[["name", "unit", "type", "part", "meaning"]]


# Columns that others name.
DELTA = "delta_log10_norm"
COTANGENT = "dh_log10_norm"  # of a state
NORMS = ("activation_log10_norm", DELTA, "dX_log10_norm", "dW_log10_norm", "db_log10_norm")
EXAMPLE_NORMS = ("dW_examples_log10_norm", "db_examples_log10_norm")
GAIN_NORMS = ("dgain_log10_norm", "dbias_log10_norm")
GAIN_EXAMPLE_NORMS = ("dgain_examples_log10_norm", "dbias_examples_log10_norm")
READINGS = ("statistics_log10_gain", "token_cosine", "attention_entropy")
# Of the state at one time step: h_t, ∂L/∂z_t and ∂L/∂h_t.
STATE_NORMS = ("activation_log10_norm", DELTA, COTANGENT)
# What every table and every prediction holds at least.
REQUIRED = ("run", "experiment", "seed", "layer", "op", *NORMS, "status")
PREDICTED = ("run", "layer", *NORMS)

_NORM = "log10 of the Frobenius norm"
_EXAMPLES = "log10 √Σ‖g_n‖² over the examples' own gradients"
_COUPLED = "null where a layer couples examples"

register(
    Column("run", "", "digest of the resolved settings", "string", "run"),
    Column("seed", "", "the network's seed", "int64", "row"),
    Column("layer", "", "the counted layer, 1 nearest the input", "int64", "row"),
    Column("op", "", "the operation within its layer", "string", "row"),
    Column("fan_in", "", "inputs of one unit of the operation", "int64", "row"),
    Column("fan_out", "", "units that one input of the operation reaches", "int64", "row"),
    Column("time", "", "the step of a sequence; null in rows of whole layers", "Int64", "row"),
    Column("step", "", "the step of training, from 1; null at initialization", "Int64", "row"),
    Column(NORMS[0], "log10", f"{_NORM} of the output h", part="measured"),
    Column(DELTA, "log10", f"{_NORM} of δ = ∂L/∂z, z the preactivation or a residual sum"),
    Column("dX_log10_norm", "log10", f"{_NORM} of ∂L/∂x, x the operation's input"),
    Column("dW_log10_norm", "log10", f"{_NORM} of ∂L/∂W"),
    Column("db_log10_norm", "log10", f"{_NORM} of ∂L/∂b"),
    Column("dW_examples_log10_norm", "log10", f"{_EXAMPLES} of W; {_COUPLED}"),
    Column("db_examples_log10_norm", "log10", f"{_EXAMPLES} of b; {_COUPLED}"),
    Column("dgain_log10_norm", "log10", f"{_NORM} of a normalization's gradient of its gain"),
    Column("dbias_log10_norm", "log10", f"{_NORM} of a normalization's gradient of its bias"),
    Column("dgain_examples_log10_norm", "log10", f"{_EXAMPLES} of the gain; {_COUPLED}"),
    Column("dbias_examples_log10_norm", "log10", f"{_EXAMPLES} of the bias; {_COUPLED}"),
    Column(
        *("statistics_log10_gain", "log10"),
        "‖dx‖ of a normalization over what it would be, were the statistics constants",
    ),
    Column("token_cosine", "", "mean cosine between two tokens of an example, in the output"),
    Column("attention_entropy", "nat", "mean entropy of the attention's weights"),
    Column(COTANGENT, "log10", f"{_NORM} of ∂L/∂h_t, in rows of single steps"),
    Column("W_log10_norm", "log10", f"{_NORM} of W that a step of training starts from"),
    Column("update_log10_norm", "log10", f"{_NORM} of the step that training takes in W"),
    Column("W_turn", "radians", "angle between W before and after a step of training"),
    Column(
        *("status", ""),
        "ok; zero: a norm is exactly 0; lost: below rounding; nonfinite: out of the float range; "
        "of modules also underflow: below the type's range; unused: not run, or without a gradient",
        *("string", "status"),
    ),
    Column(
        "module", "", "path of the module in the model, empty for the model", "string", "module"
    ),
    Column(
        *("use", ""),
        "the module's call in a forward pass, from 1; null if it never ran",
        *("Int64", "module"),
    ),
    Column(
        *("output", ""),
        "name of a tensor among several outputs; null where it is all of them",
        *("string", "module"),
    ),
    Column(
        *("parameter", ""),
        "name of the parameter in its module; null in rows of modules",
        *("string", "module"),
    ),
    Column(
        *("aliases", ""),
        "other paths of the same module or parameter, or null",
        *("string", "module"),
    ),
    Column(
        *("block", ""),
        "which of the repeated blocks the row belongs to, from 1, or null",
        *("Int64", "module"),
    ),
    Column("note", "", "what the row leaves out, or null", "string", "module"),
    Column("step_loss", "", "the loss that the step was given, or null", part="module"),
    Column("activation_zeros", "share", "share of exact zeros in the output", part="module"),
    Column("delta_zeros", "share", "share of exact zeros in δ", part="module"),
    Column(f"{DELTA}_infinite", "log10", f"{DELTA} at infinite width", part="predicted"),
    Column("q", "", "mean square of the preactivations", part="predicted"),
    Column("chi", "", "factor of E‖δ‖² from the layer above", part="predicted"),
    Column("slope_error", "log10", "theory's own error of the slope, a layer", part="predicted"),
    Column("silent_because", "", "why there is no prediction", "string", "predicted"),
    *(
        Column(f"{name}_sd", "log10", f"standard deviation of {name} over seeds", part="predicted")
        for name in (*NORMS, COTANGENT)
    ),
)


# Settings

_DTYPES = {str: "string", int: "Int64", float: "Float64", bool: "boolean"}


@dataclass(frozen=True)
class Setting:
    """What a field of settings says of itself.

    ``choices`` are the values that it may take, or ``check(name, value)`` raises InputError for one
    that it may not, and ``allowed`` puts this into words; null passes. ``column`` is its name in
    tables, "" for none, by default that of the field behind the prefix of its group. ``measured``
    says that it changes numbers, so that it belongs to a run's digest; ``architecture``, that a
    network of a user's own lacks it; ``where(settings)``, whether it applies to a run.

    ``later`` is for a measured setting that is added when runs are already kept: at its default it
    is left out of the resolved settings and so of the digest, and older runs keep their names. Its
    default must be what those runs did.
    """

    meaning: str
    unit: str = ""
    choices: Collection[str] = ()
    check: Callable[[str, Any], None] | None = None
    allowed: str = ""
    column: str | None = None
    measured: bool = True
    architecture: bool = False
    later: bool = False
    where: Callable[[Any], bool] | None = None


def setting(default: Any, meaning: str, *, init: bool = True, **more) -> Any:
    """A dataclass's field that carries its :class:`Setting`.

    Without ``init`` nobody gives it: the dataclass finds its value from the others.
    """
    metadata = {"setting": Setting(meaning, **more)}
    return dataclasses.field(default=default, init=init, metadata=metadata)


def settings_of(kind: Any) -> Iterator[tuple[dataclasses.Field, Setting]]:
    """The fields of a dataclass of settings that are settings, not groups of them."""
    for field in dataclasses.fields(kind):
        if "setting" in field.metadata:
            yield field, field.metadata["setting"]


def resolved(values: Any) -> dict[str, Any]:
    """What a dataclass's settings add to a run's digest, by name."""
    return {
        field.name: getattr(values, field.name)
        for field, own in settings_of(values)
        if own.measured and not (own.later and getattr(values, field.name) == field.default)
    }


def check_each(values: Any, prefix: str = "") -> None:
    """Raise InputError for the first of a dataclass's settings that breaks its own rule."""
    for field, own in settings_of(values):
        value = getattr(values, field.name)
        if value is None:
            continue
        if own.choices and value not in own.choices:
            raise unknown(f"{prefix}{field.name}", value, own.choices)
        if own.check:
            own.check(f"{prefix}{field.name}", value)


def dtype_of(kind: Any) -> str:
    """The pandas type, with nulls, of a setting of type ``kind``, such as ``int | None``."""
    return next(_DTYPES[part] for part in (*get_args(kind), kind) if part in _DTYPES)
