"""Is a model a plain chain of linear maps and activations, and how were its weights drawn?

The chain is followed by its tensors: every map reads what the module before it gave, whatever the
code of ``forward`` looks like. Activations are recognised by their values. Weights are recognised
by their moments as drawn: their variance names the scheme, and the fourth moments of W Wᵀ say
whether entries are independent, or rows orthogonal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from flowlab.initializers import SCHEMES, Initializer, InitSettings
from flowlab.modules.feeding import output_of
from flowlab.modules.parameters import fans_of
from flowlab.theory.activations import ACTIVATIONS

_MAPS = (nn.Linear, nn.Conv2d)
_SILENT = (nn.Flatten, nn.Identity, nn.Dropout, nn.Unflatten)
_DEVIATIONS = 5.0  # standard errors by which a moment may be off
_GRID = torch.linspace(-4.0, 4.0, 101, dtype=torch.float64)


@dataclass(frozen=True)
class MapInChain:
    """A map of a chain and the activation behind it, each with its path; None where there is none.

    ``activation`` is theory's name; the last map has ``identity``. ``pooled`` says that the map
    reads the mean of images over their positions.
    """

    path: str
    activation_path: str | None
    activation: str
    pooled: bool = False


@dataclass(frozen=True)
class Draw:
    """How the weights and biases of a chain's maps were drawn: fan_in Var(W) and Var(b) of each.

    ``scheme`` names the scheme of the laboratory, "" where the variances are those of none.
    """

    sigma_w2: tuple[float, ...]
    sigma_b2: tuple[float, ...]
    orthogonal: bool
    scheme: str


def chain_of(model: nn.Module, inputs) -> list[MapInChain] | str:
    """The chain that a model is for these inputs, or one sentence that says where it is none."""
    calls: list[tuple[str, nn.Module, torch.Tensor, torch.Tensor]] = []
    handles = []
    for path, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, _SILENT):
            before, behind = _noting(path, calls)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(behind))
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            output = output_of(model, inputs)
    except Exception as error:  # a model may be unable to run in evaluation, a chain is not
        return f"theory knows plain chains; in evaluation the model raises {type(error).__name__}"
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    noisy = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if noisy:
        return "theory knows no dropout; p=0 may have a prediction"
    return _linked(calls, output)


def _noting(path: str, calls: list):
    given: list[torch.Tensor | None] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        single = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        given.append(args[0].clone() if single else None)  # it may be changed in place

    def behind(module: nn.Module, args: tuple, output: object) -> None:
        made = output.clone() if isinstance(output, torch.Tensor) else None
        calls.append((path, module, given.pop(), made))

    return before, behind


def _linked(calls: list, output: object) -> list[MapInChain] | str:
    """The calls as links; every input must be the output before, or an activation of it."""
    links: list[MapInChain] = []
    before, paths, pooled = None, set(), False
    for path, module, given, made in calls:
        if given is None or made is None:
            return f"theory knows maps of one tensor to one; {path} is none"
        if path in paths and isinstance(module, _MAPS):
            return f"theory knows weights that are used once; {path} is called again"
        again = path in paths
        paths.add(path)
        between = "identity" if before is None else _between(before, given)
        if between is None and _is_mean(before, given):
            between, pooled = "identity", True
        if between is None:
            return f"theory knows plain chains; {path} does not read what came before it"
        if isinstance(module, _MAPS):
            if links and between != "identity":
                links[-1] = replace(links[-1], activation=between)
            links.append(MapInChain(path, None, "identity", pooled))
            pooled = False
        elif _is_mean(given, made):
            if between != "identity":
                links[-1] = replace(links[-1], activation=between)
            pooled = True
        else:
            name = activation_of(module)
            if name is None:
                kind = type(module).__name__
                return f"theory knows chains of maps and activations; {path} is a {kind}"
            if not links:
                return f"theory knows chains that begin with a map; {path} comes before the first"
            if links[-1].activation != "identity" or between != "identity":
                return f"theory knows one activation behind a map; {path} is the second"
            own = None if again else path  # rows of a later call are others
            links[-1] = replace(links[-1], activation_path=own, activation=name)
        before = made
    if not links:
        return "theory knows chains of linear maps; got none among the model's modules"
    if not isinstance(output, torch.Tensor) or _between(before, output) != "identity":
        return "theory knows plain chains; the model's output is not its last module's"
    if links[-1].activation != "identity":
        return "theory knows chains that end in a map; the last one has an activation"
    middle = {link.activation for link in links[:-1]}
    if len(middle) > 1:
        return f"theory knows one activation throughout; got {', '.join(sorted(middle))}"
    return links


def _between(before: torch.Tensor, given: torch.Tensor) -> str | None:
    """The activation that makes the tensor ``given`` of the one before; None for anything else."""
    if before.numel() != given.numel():
        return None
    before, given = before.reshape(-1).double(), given.reshape(-1).double()
    scale = float(before.abs().max()) or 1.0
    for name, activation in ACTIVATIONS.items():
        expected = torch.from_numpy(activation.phi(before.numpy()))
        if float((expected - given).abs().max()) <= 1e-5 * scale:
            return name
    return None


def _is_mean(before: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether the tensor ``given`` is the mean of images (examples, channels, height, width)."""
    if before.dim() != 4 or before[..., 0, 0].numel() != given.numel() or before[0, 0].numel() == 1:
        return False
    mean = before.double().mean((2, 3)).reshape(-1)
    return bool(torch.allclose(mean, given.double().reshape(-1), rtol=1e-4, atol=1e-7))


def activation_of(module: nn.Module) -> str | None:
    """Theory's name of a module without parameters that has the values of an activation."""
    if next(module.parameters(), None) is not None:
        return None
    try:
        with torch.no_grad():
            values = module(_GRID.clone())
    except Exception:  # any module at all may be asked
        return None
    if not isinstance(values, torch.Tensor) or values.shape != _GRID.shape:
        return None
    for name, activation in ACTIVATIONS.items():
        if np.allclose(activation.phi(_GRID.numpy()), values.numpy(), rtol=1e-6, atol=1e-9):
            return name
    return None


def draw_of(models: Sequence[nn.Module], links: Sequence[MapInChain]) -> Draw | str:
    """How the maps of a chain were drawn, from all models; or a sentence that says what is odd."""
    weights = [[m.get_submodule(link.path).weight.detach() for m in models] for link in links]
    biases = [[m.get_submodule(link.path).bias for m in models] for link in links]
    kinds = [_independence(of) for of in weights]
    for link, kind in zip(links, kinds, strict=True):
        if kind == "":
            return (
                f"theory knows independent or orthogonal weights; those of {link.path} are neither"
            )
    if "orthogonal" in kinds and set(kinds[:-1]) != {"orthogonal"}:
        return "theory knows chains all of whose weights are drawn alike; some are orthogonal"
    orthogonal = "orthogonal" in kinds
    fans = [fans_of(of[0]) for of in weights]
    sigma_w2 = [_square(of) * fan[0] for of, fan in zip(weights, fans, strict=True)]
    sigma_b2 = [0.0 if of[0] is None else _square(of) for of in biases]
    scheme = "" if orthogonal else _scheme(weights, biases, fans)
    if scheme:
        known = Initializer(InitSettings(scheme))
        sigma_w2 = [fan[0] * known.weight_variance(*fan) for fan in fans]
        sigma_b2 = [
            0.0 if of[0] is None else known.bias_variance(fan[0])
            for of, fan in zip(biases, fans, strict=True)
        ]
    return Draw(tuple(sigma_w2), tuple(sigma_b2), orthogonal, scheme or "orthogonal" * orthogonal)


def _square(tensors: Sequence[torch.Tensor]) -> float:
    return float(np.mean([float(one.detach().double().square().mean()) for one in tensors]))


def _independence(weights: Sequence[torch.Tensor]) -> str:
    """independent, orthogonal, or "" for anything else, by moments over all draws.

    For independent entries of variance s² in n rows and m columns E‖WWᵀ‖² is s⁴ nm(n + m - 2) plus
    the fourth moment's nm E w⁴; orthonormal rows (or columns) times g give g⁴ min(n, m).
    """
    ratios, exact = [], []
    for one in weights:
        w = one.double().reshape(one.shape[0], -1)
        n, m = w.shape
        square, fourth = float(w.square().mean()), float(w.pow(4).mean())
        if not square:
            return ""
        gram = w @ w.T if n <= m else w.T @ w
        found = float(gram.square().sum())
        ratios.append(found / (square**2 * n * m * (n + m - 2) + fourth * n * m))
        exact.append(found * min(n, m) / (square * n * m) ** 2)
        if abs(float(w.mean())) > _DEVIATIONS * math.sqrt(square / w.numel()):
            return ""
        if float((w == 0).double().mean()) > 0.5:
            return ""
    if max(exact) < 1 + 1e-4 and min(weights[0].shape[0], weights[0][0].numel()) > 1:
        return "orthogonal"
    # Of independent entries the ratio is 1 on average, with a deviation of about 2/sqrt(nm).
    n, m = weights[0].shape[0], weights[0][0].numel()
    error = _DEVIATIONS * 3 / math.sqrt(n * m * len(weights))
    return "independent" if abs(float(np.mean(ratios)) - 1) <= error else ""


def _scheme(weights, biases, fans) -> str:
    """The scheme of the laboratory whose variances and distribution these are."""
    for name, scheme in SCHEMES.items():
        if scheme.distribution not in ("normal", "uniform") or name == "normal":
            continue
        known = Initializer(InitSettings(name))
        maps = zip(weights, biases, fans, strict=True)
        if all(_drawn_by(known, scheme.distribution, *of) for of in maps):
            return name
    return ""


def _drawn_by(known: Initializer, distribution: str, weights, biases, fans) -> bool:
    kurtosis = {"normal": 3.0, "uniform": 1.8}[distribution]
    count = weights[0].numel() * len(weights)
    if not _near(_square(weights), known.weight_variance(*fans), kurtosis, count):
        return False
    fourth = np.mean([float(one.double().pow(4).mean()) for one in weights])
    found = fourth / _square(weights) ** 2
    if count > 100 and abs(found - kurtosis) > min(0.5, _DEVIATIONS * 10 / math.sqrt(count)):
        return False
    if biases[0] is None:
        return True
    expected, count = known.bias_variance(fans[0]), biases[0].numel() * len(biases)
    if expected == 0.0:
        return _square(biases) == 0.0
    return _near(_square(biases), expected, 1.8, count)


def _near(found: float, expected: float, kurtosis: float, count: int) -> bool:
    """Whether a mean square is the variance, within its standard errors."""
    return abs(found / expected - 1) <= _DEVIATIONS * math.sqrt((kurtosis - 1) / count)
