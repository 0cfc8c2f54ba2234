"""The block that a family of models repeats: numbered modules that grow in number with depth."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn

from flowlab.errors import InputError

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)$")
Siblings = dict[tuple[str, str], list[str]]  # by the parent's path and the stem of their names


def repeated(models: Mapping[int, nn.Module], pattern: str | None = None) -> dict[int, list[str]]:
    """By depth, the paths of the blocks that models of these depths repeat, input first.

    Siblings are modules whose names differ by their number: ``layers.0`` and ``layers.1``, or
    ``fc1`` and ``fc2``. Those that grow in number with depth, the outermost of them, are blocks. In
    a flat ``nn.Sequential`` a block is spelt out over several siblings: there it stands for it the
    type that owns parameters and grows most, and of linear maps those of the commonest fan_out,
    which leaves a read-out out. ``pattern`` names them instead. Raises InputError where there are
    none.
    """
    if pattern is not None:
        found = {
            depth: [p for p, _ in model.named_modules() if fnmatchcase(p, pattern)]
            for depth, model in models.items()
        }
        if not all(found.values()):
            raise InputError(f"blocks must match a module at every depth; got {pattern}")
        return found
    siblings = {depth: _siblings(model) for depth, model in models.items()}
    growing = _growing(siblings)
    outermost = [
        of for of in growing if not any(_within(of[0], other) for other in growing if other != of)
    ]
    found = {}
    for depth, model in models.items():
        paths = [path for of in outermost for path in _chosen(model, siblings, of, depth)]
        order = {path: number for number, (path, _) in enumerate(model.named_modules())}
        found[depth] = sorted(paths, key=order.get)
    if not all(len(paths) > 1 for paths in found.values()):
        counts = ", ".join(f"{len(paths)} at depth {depth}" for depth, paths in found.items())
        raise InputError(
            "make must repeat a block at least twice, in modules numbered 0, 1, ...; "
            f"got {counts}: name them by blocks='encoder.layers.*'"
        )
    return found


def _siblings(model: nn.Module) -> Siblings:
    found: Siblings = defaultdict(list)
    for path, _ in model.named_modules():
        parent, _, name = path.rpartition(".")
        match = _NUMBERED.match(name)
        if match:
            found[parent, match["stem"]].append(path)
    return found


def _growing(siblings: Mapping[int, Siblings]) -> list[tuple[str, str]]:
    """Those that are more, the deeper the model is; of one depth the most numerous."""
    depths = sorted(siblings)
    deepest = siblings[depths[-1]]
    if len(depths) == 1:
        most = max(map(len, deepest.values()), default=0)
        return [of for of, paths in deepest.items() if len(paths) == most]
    counts = {of: [len(siblings[depth].get(of, ())) for depth in depths] for of in deepest}
    return [of for of, each in counts.items() if all(more > less for less, more in pairwise(each))]


def _within(parent: str, other: tuple[str, str]) -> bool:
    """Whether a parent's path leads through a sibling of another family."""
    family = re.escape(f"{other[0]}.{other[1]}".lstrip("."))
    return re.match(rf"{family}\d+(\.|$)", parent) is not None


def _chosen(
    model: nn.Module, siblings: Mapping[int, Siblings], of: tuple[str, str], depth: int
) -> list[str]:
    """The blocks among a family's members."""
    paths = siblings[depth].get(of, [])
    kinds = {path: type(model.get_submodule(path)) for path in paths}
    owners = [path for path in paths if any(True for _ in model.get_submodule(path).parameters())]
    if not owners:
        return []
    (kind, _), *_ = Counter(kinds[path] for path in owners).most_common(1)
    chosen = [path for path in owners if kinds[path] is kind]
    out = {
        path: getattr(getattr(model.get_submodule(path), "weight", None), "shape", None)
        for path in chosen
    }
    if all(shape is not None and len(shape) > 1 for shape in out.values()):
        (commonest, _), *_ = Counter(shape[0] for shape in out.values()).most_common(1)
        chosen = [path for path in chosen if out[path][0] == commonest]
    return chosen
