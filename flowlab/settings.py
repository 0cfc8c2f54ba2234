"""The settings of one run: every axis of an experiment, with its rules."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, get_args

from flowlab.data import DataSettings
from flowlab.errors import InputError, check_count, check_positive, check_scale, unknown
from flowlab.initializers import PRESETS, InitSettings
from flowlab.layers.activation import ACTIVATIONS
from flowlab.layers.convolution import PADDING_MODES
from flowlab.layers.loss import LOSSES, REDUCTIONS

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
# Settings that change no number of the table.
_NOT_MEASURED = ("experiment", "results_dir", "memory_gib", "threads", "overwrite", "kept_within")
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


@dataclass
class NetworkSettings:
    """The architecture; each network reads the options that `NETWORKS` lists for it.

    ``branch_maps`` is the number of maps in a residual branch (1 or 2; by default 2 for fixup and
    resnet, else 1); ``branch_scale`` is the factor a of ``skip=scaled``: 1/sqrt(L) or 1/L for L
    blocks. Images have ``channels`` (by default 1, of gaussian data the width) and of gaussian data
    the side ``image``; convolutions keep their size by ``padding``, zeros or circular, and so have
    an odd ``kernel_size``.

    Sequences have ``steps``: an image's rows (8) or pixels (64), say. Of recurrence, ``recurrent``
    is the scheme of the maps from state to state (by default the run's), ``radius`` their gain,
    ``truncation`` the steps after which backpropagation through time is cut (by default never), and
    ``forget_bias`` is added to an LSTM's forget gates. Of attention there are ``heads``, of tokens
    that see earlier ones alone if ``causal``; logits are divided by the square root of a head's
    width, or by that width (``logit_scale``); ``placement`` puts normalizations before a branch or
    after its sum; the token-wise MLP is ``expansion`` times as wide.
    """

    name: str = "mlp"
    branch_maps: int | None = None
    branch_scale: str = "inverse_sqrt_depth"
    kernel_size: int = 3
    padding: str = "zeros"
    channels: int | None = None
    image: int = 8
    steps: int = 8
    recurrent: str | None = None
    radius: float = 1.0
    truncation: int | None = None
    forget_bias: float = 0.0
    heads: int = 4
    causal: bool = False
    logit_scale: str = "inverse_sqrt"
    placement: str = "pre"
    expansion: int = 4

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
        for name, known in (
            ("branch_scale", BRANCH_SCALES),
            ("padding", PADDING_MODES),
            ("recurrent", (None, *RECURRENT)),
            ("logit_scale", LOGIT_SCALES),
            ("placement", PLACEMENTS),
        ):
            if getattr(self, name) not in known:
                raise unknown(f"network.{name}", getattr(self, name), [k for k in known if k])
        for name in (
            *("kernel_size", "channels", "image", "steps", "truncation", "heads", "expansion"),
        ):
            if getattr(self, name) is not None:
                check_count(f"network.{name}", getattr(self, name))
        if self.kernel_size % 2 == 0:
            raise InputError(
                f"network.kernel_size must be odd, to keep the image's size; got {self.kernel_size}"
            )
        check_scale("network.radius", self.radius)
        if not math.isfinite(self.forget_bias):
            raise InputError(f"network.forget_bias must be finite; got {self.forget_bias}")


@dataclass
class Settings:
    """One run. ``validate`` raises InputError in one line for the first rule that is broken.

    ``seeds`` networks are drawn with the seeds ``seed``, ``seed + 1``, ...; ``upstream`` is the
    cotangent at the output: of a ``loss`` on labels, ``gaussian`` (independent of the forward pass)
    or ``ones``, divided by the batch size under ``reduction=mean``. ``kept_within`` is the
    threshold of the verdict, in decades from end to end of the body.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings = field(default_factory=DataSettings)
    depth: int = 50
    width: int = 128
    activation: str = "relu"
    skip: str = "none"
    norm: str = "none"
    batch_size: int = 128
    seeds: int = 16
    seed: int = 0
    upstream: str = "loss"
    loss: str = "cross_entropy"
    reduction: str = "mean"
    dtype: str = "float32"
    experiment: str = "single"
    results_dir: str = "results"
    memory_gib: float = 2.0
    threads: int | None = None
    overwrite: bool = False
    kept_within: float = 1.0

    def validate(self) -> "Settings":
        """Check every rule and return self."""
        for name in ("depth", "width", "batch_size", "seeds"):
            check_count(name, getattr(self, name))
        if not 0 <= self.seed < 2**63 - self.seeds:
            raise InputError(f"seed must be at least 0 and below 2^63; got {self.seed}")
        for name, known in (
            ("activation", ACTIVATIONS),
            ("skip", SKIPS),
            ("norm", NORMALIZATIONS),
            ("upstream", UPSTREAMS),
            ("loss", LOSSES),
            ("reduction", REDUCTIONS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.threads is not None:
            check_count("threads", self.threads)
        check_positive("memory_gib", self.memory_gib)
        check_positive("kept_within", self.kept_within)
        plain = self.experiment.strip(". ") and self.experiment.isprintable()
        if not plain or set(self.experiment) & set('/\\:*?"<>|'):
            raise InputError(f"experiment must be a plain folder name; got {self.experiment!r}")
        if not self.results_dir or "\0" in self.results_dir:
            raise InputError(f"results_dir must be the name of a folder; got {self.results_dir!r}")
        self.network.validate()
        self.init.validate()
        self.data.validate()
        check_scale("init.gain times network.radius", self.init.gain * self.network.radius)
        offered = _ACTIVATIONS.get(self.network.name, ACTIVATIONS)
        if self.activation not in offered:
            raise unknown(f"activation of network={self.network.name}", self.activation, offered)
        if self.skip != "none" and self.network.name in ("rnn", "lstm", "gru"):
            raise InputError(f"skip must be none for network={self.network.name}; got {self.skip}")
        if self.skip == "fixup" and self.network.branch_maps == 1:
            raise InputError("network.branch_maps must be 2 for skip=fixup; got 1")
        return self

    @property
    def branch_maps(self) -> int:
        """Maps in a residual branch."""
        two = self.skip == "fixup" or self.network.name == "resnet"
        return self.network.branch_maps or (2 if two else 1)

    def resolved(self) -> dict:
        """Everything that determines the numbers, as plain data: no folders, no thresholds."""
        plain = dataclasses.asdict(self)
        for name in _NOT_MEASURED:
            del plain[name]
        return plain

    def run(self) -> str:
        """The run's name: a digest of the resolved settings."""
        text = json.dumps(self.resolved(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """Settings, not validated, from what ``dataclasses.asdict`` makes of them."""
    return Settings(**values | {name: made(**values[name]) for name, made in _GROUPS.items()})


def make(**axes) -> Settings:
    """Validated settings from keywords; ``init``, ``network`` and ``data`` may be plain names.

    ``make(init="he", depth=50)``; a network brings its own defaults. Raises
    InputError for an unknown key or a broken rule.
    """
    axes |= _typed(Settings, {k: v for k, v in axes.items() if k not in _GROUPS})
    for name in axes.keys() & _GROUPS.keys():
        value = axes[name]
        given = {"name": value} if isinstance(value, str) else value
        if isinstance(given, dict):
            preset = PRESETS.get(str(given.get("name")), {}) if name == "init" else {}
            given = preset | given | {k: v for k, v in preset.items() if k == "name"}
            axes[name] = _GROUPS[name](**_typed(_GROUPS[name], given, f"{name}."))
        elif not isinstance(given, _GROUPS[name]):
            raise InputError(f"{name} must be a name or a dictionary of settings; got {given!r}")
    _, defaults = NETWORKS.get(axes.get("network", NetworkSettings()).name, ((), {}))
    return Settings(**{**defaults, **axes}).validate()


def _typed(schema, values: dict, prefix: str = "") -> dict:
    """The values in the types of ``schema``, so that equal settings have equal names.

    Raises InputError for a key that is no field and a value of another type.
    """
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
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


_GROUPS = {"init": InitSettings, "network": NetworkSettings, "data": DataSettings}
_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def _is(value, kind) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return hasattr(value, "__index__")
    if kind is float:
        return isinstance(value, Real)
    return isinstance(value, kind)
