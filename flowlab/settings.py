"""The settings of one run: every axis of an experiment, with its rules."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, get_args

import pandas as pd

from flowlab import data, notebook, schema
from flowlab.data import DataSettings
from flowlab.errors import InputError, check_count, check_positive, check_scale, unknown
from flowlab.initializers import PRESETS, REGISTERED_SCHEMES, InitSettings
from flowlab.layers.activation import ACTIVATIONS, REGISTERED_ACTIVATIONS
from flowlab.layers.convolution import PADDING_MODES
from flowlab.layers.loss import LOSSES, REDUCTIONS
from flowlab.optimizers import PRESETS as OPTIMIZER_PRESETS
from flowlab.optimizers import TrainingSettings
from flowlab.schema import Column, Setting, check_each, dtype_of, setting, settings_of

SKIPS = ("none", "identity", "scaled", "mix", "rezero", "fixup")
NORMALIZATIONS = ("none", "batch", "layer", "rms")
BRANCH_SCALES = ("inverse_sqrt_depth", "inverse_depth")
UPSTREAMS = ("loss", "gaussian", "ones")
DTYPES = ("float32", "float64")
PLACEMENTS = ("pre", "post")
LOGIT_SCALES = ("inverse_sqrt", "inverse")
RECURRENT = ("lecun", "orthogonal", "identity")

_BRANCH = ("branch_maps", "branch_scale")
_IMAGE = ("kernel_size", "padding", "channels", "image")
# The activations of networks that offer but some.
_ACTIVATIONS = {"rnn": ("tanh", "relu", "identity"), "lstm": ("tanh",), "gru": ("tanh",)}
_TIME = ("steps", "recurrent", "radius", "truncation")
_SHALLOW = {"depth": 2, "batch_size": 32, "activation": "tanh"}
# Each network: the options that it reads, and the axes whose defaults it changes.
NETWORKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mlp": (_BRANCH, {}),
    "cnn": ((*_BRANCH, *_IMAGE), {"width": 32, "batch_size": 32}),
    "resnet": (
        (*_BRANCH, *_IMAGE),
        {"width": 32, "batch_size": 32, "skip": "identity", "norm": "batch"},
    ),
    "rnn": (_TIME, _SHALLOW),
    "lstm": ((*_TIME, "forget_bias"), _SHALLOW),
    "gru": (_TIME, _SHALLOW),
    "transformer": (
        ("steps", "branch_scale", "heads", "causal", "logit_scale", "placement", "expansion"),
        {
            **{"depth": 14, "width": 64, "batch_size": 32},
            **{"activation": "gelu", "skip": "identity", "norm": "layer"},
        },
    ),
}


SEQUENCES = tuple(name for name, (options, _) in NETWORKS.items() if "steps" in options)


def _odd(name: str, value: int) -> None:
    check_count(name, value)
    if value % 2 == 0:
        raise InputError(f"{name} must be odd, to keep the image's size; got {value}")


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite; got {value}")


def _folder_name(name: str, value: str) -> None:
    plain = value.strip(". ") and value.isprintable()
    if not plain or set(value) & set('/\\:*?"<>|'):
        raise InputError(f"{name} must be a plain folder name; got {value!r}")


def _folder(name: str, value: str) -> None:
    if not value or "\0" in value:
        raise InputError(f"{name} must be the name of a folder; got {value!r}")


@dataclass
class NetworkSettings:
    """The architecture; each network reads the options that `NETWORKS` lists for it."""

    name: str = setting("mlp", "the architecture", choices=NETWORKS)
    branch_maps: int | None = setting(
        None,
        "maps in a residual branch, by default 2 for fixup and resnet, else 1",
        allowed="1, 2",
        where=lambda settings: settings.skip != "none",
    )
    branch_scale: str = setting(
        "inverse_sqrt_depth",
        "the factor a of skip=scaled: 1/sqrt(L) or 1/L for L branches",
        choices=BRANCH_SCALES,
        where=lambda settings: settings.skip == "scaled",
    )
    kernel_size: int = setting(
        3, "side of a convolution's kernel", check=_odd, allowed="odd whole numbers"
    )
    padding: str = setting(
        "zeros", "what surrounds an image, so that it keeps its size", choices=PADDING_MODES
    )
    channels: int | None = setting(
        None, "an image's channels; by default 1, of gaussian data the width", check=check_count
    )
    image: int = setting(
        8,
        "side of an image of gaussian data",
        check=check_count,
        where=lambda settings: settings.data.name == "gaussian" and settings.data.features is None,
    )
    steps: int = setting(
        8, "steps of a sequence: an image's rows (8) or pixels (64), say", check=check_count
    )
    recurrent: str | None = setting(
        None, "scheme of the maps from state to state; by default the run's", choices=RECURRENT
    )
    radius: float = setting(1.0, "gain of the maps from state to state", check=check_scale)
    truncation: int | None = setting(
        None,
        "steps after which backpropagation through time is cut; by default never",
        check=check_count,
    )
    forget_bias: float = setting(0.0, "added to an LSTM's forget gates", check=_finite)
    heads: int = setting(4, "heads of attention", check=check_count)
    causal: bool = setting(False, "whether tokens attend to earlier ones alone")
    logit_scale: str = setting(
        "inverse_sqrt",
        "what divides the logits: the square root of a head's width, or that width",
        choices=LOGIT_SCALES,
    )
    placement: str = setting(
        "pre", "normalizations before a branch, or after its sum", choices=PLACEMENTS
    )
    expansion: int = setting(
        4, "width of the token-wise MLP over that of the tokens", check=check_count
    )

    def validate(self) -> None:
        """Raise InputError for an unknown name, an option of another network, a broken rule."""
        if self.name not in NETWORKS:
            raise unknown("network", self.name, NETWORKS)
        options, _ = NETWORKS[self.name]
        for field_ in dataclasses.fields(self)[1:]:
            value = getattr(self, field_.name)
            if field_.name not in options and value != field_.default:
                raise InputError(
                    f"network.{field_.name} does not apply to network={self.name}; got {value}"
                )
        if self.branch_maps not in (None, 1, 2):
            raise InputError(f"network.branch_maps must be 1 or 2; got {self.branch_maps}")
        check_each(self, "network.")


@dataclass
class Settings:
    """One run. ``validate`` raises InputError in one line for the first rule that is broken."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    depth: int = setting(50, "counted layers, the last one linear", check=check_count)
    width: int = setting(
        128, "units, or channels, of a layer", check=check_count, architecture=True
    )
    activation: str = setting("relu", "the nonlinearity", choices=ACTIVATIONS, architecture=True)
    skip: str = setting("none", "the skip connection", choices=SKIPS, architecture=True)
    norm: str = setting("none", "the normalization", choices=NORMALIZATIONS, architecture=True)
    batch_size: int = setting(128, "examples in the batch", check=check_count)
    seeds: int = setting(
        16, "networks drawn, with the seeds seed, seed + 1, ...", check=check_count
    )
    seed: int = setting(0, "the first network's seed", allowed="whole numbers from 0", column="")
    upstream: str = setting(
        "loss",
        "the cotangent at the output: of a loss on labels, gaussian (independent of the forward "
        "pass) or ones",
        choices=UPSTREAMS,
    )
    loss: str = setting(
        "cross_entropy",
        "the loss, for upstream=loss",
        choices=LOSSES,
        where=lambda settings: settings.upstream == "loss",
    )
    reduction: str = setting(
        "mean", "whether the cotangent is divided by the batch size", choices=REDUCTIONS
    )
    dtype: str = setting("float32", "type of the arithmetic", choices=DTYPES)
    experiment: str = setting(
        "single", "name of the folder of results", check=_folder_name, measured=False
    )
    results_dir: str = setting(
        "results", "folder of all experiments", check=_folder, measured=False, column=""
    )
    memory_gib: float = setting(
        2.0,
        "memory that a run may have; seeds are processed in parts that fit",
        unit="GiB",
        check=check_positive,
        measured=False,
        column="",
    )
    threads: int | None = setting(
        None,
        "threads of a process; by default one for each core",
        check=check_count,
        measured=False,
        column="",
    )
    overwrite: bool = setting(
        False, "whether to measure anew what a sweep finds kept", measured=False, column=""
    )
    kept_within: float = setting(
        1.0,
        "end to end, a gradient that changes by less is called kept",
        unit="decades",
        check=check_positive,
        measured=False,
        column="",
    )
    rank: str = setting(
        "best",
        "what a sweep ranks first: the highest held-out accuracy (trained), the gradient that "
        "changes least (kept), most down (vanishing) or up (exploding), the furthest from theory "
        "(differing), or by a column that varies; best is trained, without training kept",
        allowed="best, trained, kept, vanishing, exploding, differing, a column",
        measured=False,
        column="",
    )
    registered: str | None = setting(
        None,
        "a digest of the activation and the initializer where they are registered ones",
        allowed="made by flowlab",
        later=True,
        init=False,
    )

    def __post_init__(self):
        self.registered = self._registered()

    def _registered(self) -> str | None:
        """A digest of what the names of activation and initializer stand for in this process."""
        found = [
            f"{kind} {name} {known[name]}"
            for kind, name, known in (
                ("activation", self.activation, REGISTERED_ACTIVATIONS),
                ("init", self.init.name, REGISTERED_SCHEMES),
            )
            if name in known
        ]
        return hashlib.sha256("; ".join(found).encode()).hexdigest()[:16] if found else None

    def validate(self) -> "Settings":
        """Check every rule and return self."""
        check_each(self)
        if not 0 <= self.seed < 2**63 - self.seeds:
            raise InputError(f"seed must be at least 0 and below 2^63; got {self.seed}")
        self.network.validate()
        self.init.validate()
        self.data.validate()
        self.training.validate()
        if self.trained:
            if self.upstream != "loss":
                raise InputError(f"upstream must be loss for training; got {self.upstream}")
            self.training.adam_numbers(self.batch_size)
            if self.training.two_batches and self.batch_size < 4:
                raise InputError(
                    f"batch_size must be at least 4 for training.two_batches; got {self.batch_size}"
                )
        check_scale("init.gain times network.radius", self.init.gain * self.network.radius)
        offered = _ACTIVATIONS.get(self.network.name, ACTIVATIONS)
        if self.activation not in offered:
            raise unknown(f"activation of network={self.network.name}", self.activation, offered)
        if self.skip != "none" and self.network.name in ("rnn", "lstm", "gru"):
            raise InputError(f"skip must be none for network={self.network.name}; got {self.skip}")
        if self.skip == "fixup" and self.network.branch_maps == 1:
            raise InputError("network.branch_maps must be 2 for skip=fixup; got 1")
        registered = self._registered()
        if self.registered and registered and self.registered != registered:
            raise InputError(
                f"activation={self.activation} and init={self.init.name} must be registered as "
                f"these settings have them, digest {self.registered}; got {registered}"
            )
        self.registered = registered
        return self

    @property
    def trained(self) -> bool:
        """Are the networks trained, not only measured at initialization?"""
        return self.training.name != "none"

    @property
    def branch_maps(self) -> int:
        """Maps in a residual branch."""
        two = self.skip == "fixup" or self.network.name == "resnet"
        return self.network.branch_maps or (2 if two else 1)

    def resolved(self) -> dict:
        """Everything that determines the numbers, as plain data: no folders, no thresholds."""
        groups = {name: schema.resolved(getattr(self, name)) for name in _GROUPS}
        # A group of later settings alone leaves no trace where all are at their defaults.
        return {name: own for name, own in groups.items() if own} | schema.resolved(self)

    def run(self) -> str:
        """The run's name: a digest of the resolved settings."""
        text = json.dumps(self.resolved(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def axes(self) -> dict[str, Any]:
        """Every setting that can differ between two runs, by its column; None where it does not
        apply.

        ``seed`` is not among them: tables have it in every row.
        """
        return {axis.column.name: axis.value(self) for axis in AXES}

    def _repr_html_(self) -> str:
        return notebook.of_settings(
            {"seed": self.seed, **self.axes()}, {"seed": 0, **Settings().axes()}
        )


def flat(resolved: dict, prefix: str = "") -> dict:
    """Resolved settings with dotted keys; a group's choice stands under the group's own name."""
    found = {}
    for key, value in resolved.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix.rstrip(".") if prefix and key == "name" else f"{prefix}{key}"] = value
    return found


def from_plain(values: dict) -> Settings:
    """Settings, not validated, from what ``dataclasses.asdict`` makes of them.

    What older settings lack has its default.
    """
    groups = {name: made(**values.get(name, {})) for name, made in _GROUPS.items()}
    stored = Settings(**{k: v for k, v in (values | groups).items() if k != "registered"})
    # Another process may have registered something else under the same name.
    stored.registered = values.get("registered") or stored.registered
    return stored


def stored_axes(resolved: Any) -> dict[str, Any]:
    """:meth:`Settings.axes` of resolved settings as they were stored; {} of foreign ones.

    Of a user's model these are the ``columns`` that it was stored with.
    """
    try:
        return resolved["columns"] if "columns" in resolved else from_plain(resolved).axes()
    except (AttributeError, LookupError, TypeError):
        return {}


def make(**axes) -> Settings:
    """Validated settings from keywords; ``init``, ``network``, ``data`` and ``training`` may be
    plain names.

    ``make(init="he", depth=50)``; a network brings its own defaults. ``data`` may also be arrays
    (X, y) or a DataFrame, for which :func:`flowlab.data.arrays` has options. Raises InputError for
    an unknown key or a broken rule.
    """
    axes |= _typed(Settings, {k: v for k, v in axes.items() if k not in _GROUPS})
    for name in axes.keys() & _GROUPS.keys():
        value = axes[name]
        if name == "data" and not isinstance(value, str | dict | DataSettings):
            value = axes[name] = _in_memory(value)
        given = {"name": value} if isinstance(value, str) else value
        if isinstance(given, dict):
            preset = _PRESETS.get(name, {}).get(str(given.get("name")), {})
            given = preset | given | {k: v for k, v in preset.items() if k == "name"}
            axes[name] = _GROUPS[name](**_typed(_GROUPS[name], given, f"{name}."))
        elif not isinstance(given, _GROUPS[name]):
            raise InputError(f"{name} must be a name or a dictionary of settings; got {given!r}")
    _, defaults = NETWORKS.get(axes.get("network", NetworkSettings()).name, ((), {}))
    return Settings(**{**defaults, **axes}).validate()


def _in_memory(value: Any) -> DataSettings:
    if isinstance(value, pd.DataFrame):
        return data.arrays(value)
    if isinstance(value, tuple) and len(value) == 2:
        return data.arrays(*value)
    raise InputError(
        "data must be a name, a dictionary of settings, (X, y) or a DataFrame; "
        f"got {type(value).__name__}"
    )


def given(settings: Settings | None, axes: dict[str, Any]) -> Settings:
    """Settings that a caller gives whole, or by the keywords of :func:`make`; validated.

    Raises InputError for both at once and for what are no settings.
    """
    if settings is None:
        return make(**axes)
    if not isinstance(settings, Settings):
        raise InputError(
            f"settings must be what flowlab.make returns, or keywords; got {settings!r}"
        )
    if axes:
        raise InputError(
            f"settings must be given whole or by keywords, not both; got both, with {min(axes)}"
        )
    return settings.validate()


def _typed(schema, values: dict, prefix: str = "") -> dict:
    """The values in the types of ``schema``, so that equal settings have equal names.

    Raises InputError for a key that is no field and a value of another type.
    """
    fields = {f.name: f.type for f in dataclasses.fields(schema) if f.init}
    typed = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown(f"{prefix}key" if prefix else "setting", name, fields)
        kinds = get_args(fields[name]) or (fields[name],)
        kind = next((kind for kind in kinds if _is(value, kind)), None)
        if kind is None:
            wanted = next(_KINDS[kind] for kind in kinds if kind in _KINDS)
            raise InputError(f"{prefix}{name} must be {wanted}; got {value!r}")
        try:
            typed[name] = value if value is None else kind(value)
        except OverflowError:
            raise InputError(f"{prefix}{name} must be in float64's range; got {value}") from None
    return typed


_GROUPS = {
    "network": NetworkSettings,
    "init": InitSettings,
    "data": DataSettings,
    "training": TrainingSettings,
}
_PREFIXES = {"network": "", "init": "", "data": "data_", "training": "training_"}  # of columns
_PRESETS = {"init": PRESETS, "training": OPTIMIZER_PRESETS}
_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def _is(value, kind) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return hasattr(value, "__index__")
    if kind is float:
        return isinstance(value, Real)
    return isinstance(value, kind)


@dataclass(frozen=True)
class Axis:
    """A setting that has a column; ``key`` is its name on the command line, such as init.gain."""

    key: str
    column: Column
    setting: Setting

    @property
    def of_architecture(self) -> bool:
        """Whether a network of a user's own lacks it."""
        return self.setting.architecture or self.key.startswith("network.")

    def value(self, settings: Settings) -> Any:
        """Its value, as Settings resolves it, or None where it does not apply."""
        group, _, name = self.key.rpartition(".")
        if group == "network" and name not in NETWORKS[settings.network.name][0]:
            return None
        if self.setting.where is not None and not self.setting.where(settings):
            return None
        if self.key in _GROUPS:
            return getattr(settings, self.key).name
        # What follows from other settings, too, is a property of the whole.
        return getattr(settings if hasattr(settings, name) else getattr(settings, group), name)


def _every() -> Iterator[tuple[str, dataclasses.Field, Setting]]:
    """Every setting with its key: the groups' choices, plain settings, the groups' options."""
    options = []
    for group, kind in _GROUPS.items():
        (own, choice), *others = settings_of(kind)
        yield group, own, choice
        options += [(f"{group}.{own.name}", own, option) for own, option in others]
    yield from ((own.name, own, plain) for own, plain in settings_of(Settings))
    yield from options


def _axes() -> Iterator[Axis]:
    for key, own, setting_ in _every():
        group, _, name = key.rpartition(".")
        named = setting_.column
        if named is None:
            named = name if key in _GROUPS or not group else _PREFIXES[group] + name
        if named:
            part = "setting" if setting_.measured else "run"
            column = Column(named, setting_.unit, setting_.meaning, dtype_of(own.type), part)
            yield Axis(key, column, setting_)


AXES = tuple(_axes())
schema.register(*(axis.column for axis in AXES))


_ALLOWED = {
    check_count: "whole numbers from 1",
    check_positive: "numbers above 0",
    check_scale: "numbers above 0",
}
_OF_TYPE = {bool: "true, false", int: "whole numbers", float: "numbers", str: "text"}


def _allowed(own: dataclasses.Field, setting_: Setting) -> str:
    """In words, the values that a setting may take."""
    kinds = get_args(own.type) or (own.type,)
    found = setting_.allowed or ", ".join(setting_.choices) or _ALLOWED.get(setting_.check)
    found = found or next(_OF_TYPE[kind] for kind in kinds if kind in _OF_TYPE)
    return f"{found}, null" if type(None) in kinds else found


def frame() -> pd.DataFrame:
    """Every setting: key, default, allowed values, column ("" for none), unit and meaning."""
    columns = {axis.key: axis.column.name for axis in AXES}
    rows = [
        {
            "key": key,
            "default": own.default,
            "allowed": _allowed(own, setting_),
            "column": columns.get(key, ""),
            "unit": setting_.unit,
            "meaning": setting_.meaning,
        }
        for key, own, setting_ in _every()
    ]
    return pd.DataFrame(rows)
