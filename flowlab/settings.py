"""The settings of one run: every axis of an experiment, with its rules."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from flowlab.data import DataSettings
from flowlab.errors import InputError, unknown
from flowlab.initializers import InitSettings
from flowlab.layers.activation import ACTIVATIONS
from flowlab.layers.loss import LOSSES, REDUCTIONS

NETWORKS = ("mlp",)
SKIPS = ("none", "identity", "scaled", "mix", "rezero", "fixup")
BRANCH_SCALES = ("inverse_sqrt_depth", "inverse_depth")
UPSTREAMS = ("loss", "gaussian", "ones")
DTYPES = ("float32", "float64")


@dataclass
class NetworkSettings:
    """The architecture and the residual branch.

    ``branch_maps`` is the number of linear maps in a branch (1 or 2; by default 2 for fixup, else
    1); ``branch_scale`` is the factor a of ``skip=scaled``: 1/sqrt(L) or 1/L for L blocks.
    """

    name: str = "mlp"
    branch_maps: int | None = None
    branch_scale: str = "inverse_sqrt_depth"

    def validate(self) -> None:
        """Raise InputError for an unknown name or a number of maps other than 1 and 2."""
        if self.name not in NETWORKS:
            raise unknown("network", self.name, NETWORKS)
        if self.branch_maps not in (None, 1, 2):
            raise InputError(f"network.branch_maps must be 1 or 2; got {self.branch_maps}")
        if self.branch_scale not in BRANCH_SCALES:
            raise unknown("network.branch_scale", self.branch_scale, BRANCH_SCALES)


@dataclass
class Settings:
    """One run. ``validate`` raises InputError in one line for the first rule that is broken.

    ``seeds`` networks are drawn with the seeds ``seed``, ``seed + 1``, ...; ``upstream`` is the
    cotangent at the output: of a ``loss`` on labels, ``gaussian`` (independent of the forward pass)
    or ``ones``, divided by the batch size under ``reduction=mean``.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings = field(default_factory=DataSettings)
    depth: int = 50
    width: int = 128
    activation: str = "relu"
    skip: str = "none"
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

    def validate(self) -> "Settings":
        """Check every rule and return self."""
        for name in ("depth", "width", "batch_size", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63 - self.seeds:
            raise InputError(f"seed must be at least 0 and below 2^63; got {self.seed}")
        for name, known in (
            ("activation", ACTIVATIONS),
            ("skip", SKIPS),
            ("upstream", UPSTREAMS),
            ("loss", LOSSES),
            ("reduction", REDUCTIONS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1; got {self.threads}")
        if not self.memory_gib > 0:
            raise InputError(f"memory_gib must be above 0; got {self.memory_gib}")
        if not self.experiment or set(self.experiment) & set('/\\:*?"<>|\n'):
            raise InputError(f"experiment must be a plain folder name; got {self.experiment!r}")
        self.network.validate()
        self.init.validate()
        self.data.validate()
        if self.skip == "fixup" and self.network.branch_maps == 1:
            raise InputError("network.branch_maps must be 2 for skip=fixup; got 1")
        return self

    @property
    def branch_maps(self) -> int:
        """Linear maps in a residual branch."""
        return self.network.branch_maps or (2 if self.skip == "fixup" else 1)

    def resolved(self) -> dict:
        """Everything that determines the numbers, as plain data: no folders, no memory budget."""
        plain = dataclasses.asdict(self)
        for name in ("experiment", "results_dir", "memory_gib", "threads"):
            del plain[name]
        return plain

    def run(self) -> str:
        """The run's name: a digest of the resolved settings."""
        text = json.dumps(self.resolved(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(**axes) -> Settings:
    """Validated settings from keywords; ``init``, ``network`` and ``data`` may be plain names.

    ``make(init="he", depth=50)``; raises InputError for an unknown key or a broken rule.
    """
    known = {f.name: f for f in dataclasses.fields(Settings)}
    groups = {"init": InitSettings, "network": NetworkSettings, "data": DataSettings}
    for name, value in axes.items():
        if name not in known:
            raise unknown("setting", name, known)
        if name in groups and isinstance(value, str):
            axes[name] = groups[name](name=value)
        elif isinstance(value, dict):
            axes[name] = groups[name](**value)
        elif known[name].type is int and not _is_integer(value):
            raise InputError(f"{name} must be an integer; got {value}")
    return Settings(**axes).validate()


def _is_integer(value) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
