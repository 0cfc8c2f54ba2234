"""How networks are trained: the settings of an optimizer, and its learning rate at every step.

Steps are counted from 1. What the optimizer does with a gradient is the matter of
:mod:`flowlab.training.updates`.
"""

import math
from dataclasses import dataclass
from typing import Any

from flowlab.errors import MOST, InputError, check_count, check_positive, unknown
from flowlab.schema import check_each, setting

OPTIMIZERS = ("none", "sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")
CLIPPINGS = ("none", "norm", "layer", "value", "adaptive")
# How the learning rate follows the batch, B = k B_0.
RULES = ("constant", "linear", "sqrt", "noise", "sde")
EPOCHS = 20  # of training that names no budget

# What optimizers have as defaults, by the names of their files in conf/training.
PRESETS: dict[str, dict[str, Any]] = {
    "adam": {"name": "adam", "lr": 0.001},
    "adamw": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
}


def _trained(settings) -> bool:
    return settings.training.name != "none"


def _sgd(settings) -> bool:
    return settings.training.name == "sgd"


def _adam(settings) -> bool:
    return settings.training.name in ("adam", "adamw")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must be at least 0 and below 1; got {value}")


def _part(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1; got {value}")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number, at least 0; got {value}")


def _whole(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{name} must be at least 0; got {value}")


_SHARE = "numbers from 0 to below 1"


def _setting(default: Any, meaning: str, where=_trained, **more) -> Any:
    return setting(default, meaning, later=True, where=where, **more)


@dataclass
class TrainingSettings:
    """The optimizer, its learning rate and budget, and what is logged on the way."""

    name: str = setting(
        "none", "the optimizer; none measures at initialization", choices=OPTIMIZERS, later=True
    )
    lr: float = _setting(0.1, "the learning rate", check=check_positive)
    momentum: float = _setting(0.0, "sgd: momentum", _sgd, check=_share, allowed=_SHARE)
    nesterov: bool = _setting(False, "sgd: whether momentum is Nesterov's", _sgd)
    beta1: float = _setting(0.9, "adam: decay of the mean", _adam, check=_share, allowed=_SHARE)
    beta2: float = _setting(
        0.999, "adam: decay of the mean square", _adam, check=_share, allowed=_SHARE
    )
    eps: float = _setting(1e-8, "adam: added to the root mean square", _adam, check=check_positive)
    weight_decay: float = _setting(
        0.0,
        "decay of all parameters: of adamw decoupled from the gradient, else added to it",
        check=_not_negative,
        allowed="numbers from 0",
    )
    schedule: str = _setting(
        "constant", "how the learning rate falls after the warm-up", choices=SCHEDULES
    )
    warmup: int = _setting(
        0,
        "steps over which the learning rate rises in proportion to the step",
        check=_whole,
        allowed="whole numbers from 0",
    )
    decay_every: int | None = _setting(
        None,
        "steps after which the learning rate falls, for schedule=step",
        lambda settings: settings.training.schedule == "step",
        check=check_count,
    )
    decay_factor: float = _setting(
        0.1,
        "factor by which it falls then",
        lambda settings: settings.training.schedule == "step",
        check=_part,
        allowed="numbers between 0 and 1",
    )
    epochs: float | None = _setting(
        None,
        f"budget in passes over the training examples; by default {EPOCHS}",
        check=check_positive,
    )
    steps: int | None = _setting(None, "budget in steps", check=check_count)
    examples: int | None = _setting(
        None, "budget in examples, each counted as often as it is seen", check=check_count
    )
    clip: str = _setting(
        "none",
        "what is clipped: the norm of the whole gradient, of each layer's, each value, or each "
        "unit's norm against that of its weights (adaptive)",
        choices=CLIPPINGS,
    )
    clip_at: float = _setting(
        1.0,
        "the largest norm, value or share of the weights' norm that is left as it is",
        lambda settings: settings.training.clip != "none",
        check=check_positive,
    )
    rule: str = _setting(
        "constant",
        "how the learning rate follows the batch: constant, linear, sqrt, noise (1/(1 + noise "
        "scale/B)) or sde (sqrt, and adam's other numbers with it)",
        choices=RULES,
    )
    rule_batch: int = _setting(
        32,
        "the batch size at which lr stands as it is",
        lambda settings: settings.training.rule != "constant",
        check=check_count,
    )
    noise_scale: float | None = _setting(
        None,
        "the gradient noise scale in examples, for rule=noise",
        lambda settings: settings.training.rule == "noise",
        unit="examples",
        check=check_positive,
    )
    held_out: float = _setting(
        0.2,
        "share of the data that is never trained on",
        check=_part,
        allowed="numbers between 0 and 1",
    )
    two_batches: bool = _setting(
        False,
        "whether the noise scale is also estimated at logged steps from the batch and its first "
        "quarter, for a quarter of a step more",
    )
    sharpness: bool = _setting(
        False, "whether the loss's largest curvature is measured at logged steps"
    )
    log: int | None = _setting(
        None,
        "log every so many steps, the first and the last; by default steps 1, 2, 3, 5, 8, 13, ...",
        check=check_count,
    )

    def validate(self) -> None:
        """Raise InputError for the first rule that is broken."""
        if self.name not in OPTIMIZERS:
            raise unknown("training", self.name, OPTIMIZERS)
        check_each(self, "training.")
        default = TrainingSettings(**PRESETS.get(self.name, {}))
        if self.name == "none":
            for name, value in vars(self).items():
                if name != "name" and value != getattr(default, name):
                    raise InputError(
                        f"training.{name} needs an optimizer, training=sgd, adam or adamw; "
                        f"got {value} with training=none"
                    )
            return
        of_others = ("beta1", "beta2", "eps") if self.name == "sgd" else ("momentum", "nesterov")
        for name in of_others:
            if getattr(self, name) != getattr(default, name):
                raise InputError(
                    f"training.{name} does not apply to training={self.name}; "
                    f"got {getattr(self, name)}"
                )
        if self.nesterov and not self.momentum:
            raise InputError("training.momentum must be above 0 for training.nesterov; got 0.0")
        budgets = {n: v for n in ("epochs", "steps", "examples") if (v := getattr(self, n))}
        if len(budgets) > 1:
            given = ", ".join(f"{name}={value:g}" for name, value in budgets.items())
            raise InputError(
                f"training must have one budget, epochs, steps or examples; got {given}"
            )
        if (self.decay_every is None) == (self.schedule == "step"):
            raise InputError(
                "training.decay_every must be given for training.schedule=step, and for it alone; "
                f"got {self.decay_every} for {self.schedule}"
            )
        if (self.noise_scale is None) == (self.rule == "noise"):
            raise InputError(
                "training.noise_scale must be given for training.rule=noise, and for it alone; "
                f"got {self.noise_scale} for {self.rule}"
            )

    def step_count(self, batch_size: int, rows: int) -> int:
        """How many steps the budget has with ``rows`` training examples, at least 1.

        Raises InputError for a warm-up that is longer, and for more steps than can be counted.
        """
        if self.steps is not None:
            count = self.steps
        else:
            examples = self.examples or (EPOCHS if self.epochs is None else self.epochs) * rows
            count = max(1, round(examples / batch_size))
            if count > MOST:
                raise InputError(f"training must have at most {MOST} steps; got {count:.6g}")
        if self.warmup > count:
            raise InputError(
                f"training.warmup must be at most the {count} steps of training; got {self.warmup}"
            )
        return count

    @property
    def state(self) -> int:
        """How many numbers an optimizer holds for each parameter."""
        return {"sgd": 1 if self.momentum else 0, "adam": 2, "adamw": 2}.get(self.name, 0)

    def logged_at_most(self, count: int) -> int:
        """How many steps of ``count`` are logged, or one or two more."""
        return len(self.logged(count)) if self.log is None else min(count // self.log + 2, count)

    def logged(self, count: int) -> list[int]:
        """The steps of ``count`` that are logged, in order: always the first and the last."""
        if self.log is not None:
            return sorted({1, *range(self.log, count + 1, self.log), count})
        chosen, following = [], (1, 2)
        while following[0] <= count:
            chosen.append(following[0])
            following = following[1], sum(following)
        return chosen if chosen[-1] == count else [*chosen, count]

    def batch_factor(self, batch_size: int) -> float:
        """What the rule multiplies the learning rate by for a batch of this size.

        linear: k = B/B_0 (Goyal et al. 2017); sqrt and sde: √k (Krizhevsky 2014; Malladi et al.
        2022); noise: 1/(1 + B_noise/B) over what that is at B_0 (McCandlish et al. 2018).
        """
        k = batch_size / self.rule_batch
        match self.rule:
            case "linear":
                return k
            case "sqrt" | "sde":
                return math.sqrt(k)
            case "noise":
                return (1 + self.noise_scale / self.rule_batch) / (
                    1 + self.noise_scale / batch_size
                )
        return 1.0

    def rate(self, step: int, count: int, batch_size: int) -> float:
        """The learning rate of a step of ``count``.

        Warm-up rises linearly to lr at its last step; cosine falls from there to 0 just after the
        last step (Loshchilov and Hutter 2017, eq. 5).
        """
        peak = self.lr * self.batch_factor(batch_size)
        if step < self.warmup:
            return peak * step / self.warmup
        after = step - max(self.warmup, 1)
        match self.schedule:
            case "cosine":
                whole = max(count - max(self.warmup, 1) + 1, 1)
                return 0.5 * peak * (1 + math.cos(math.pi * after / whole))
            case "step":
                return peak * self.decay_factor ** (after // self.decay_every)
        return peak

    def adam_numbers(self, batch_size: int) -> tuple[float, float, float]:
        """(beta1, beta2, eps): of rule=sde 1 - β is k times as large and ε 1/√k times.

        Raises InputError where that leaves no β.
        """
        k = batch_size / self.rule_batch if self.rule == "sde" else 1.0
        betas = [1 - k * (1 - beta) for beta in (self.beta1, self.beta2)]
        if min(betas) < 0:
            raise InputError(
                f"training.rule=sde must leave β1 = 1 - k(1 - β1) at least 0; got {min(betas):g} "
                f"for batch_size={batch_size}, k={k:g}"
            )
        return (*betas, self.eps / math.sqrt(k))
