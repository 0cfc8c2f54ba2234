"""Twins of the layers in JAX and in PyTorch; parity claims, tests and the benchmark share them.

A layer joins by ``twin(...)`` in any module of this folder, all of which are imported here.
"""

from importlib import import_module
from pkgutil import iter_modules

from flowlab.claims.twins.twin import (
    SEEDS,
    TWINS,
    Instance,
    Timed,
    Twin,
    composite,
    in_jax,
    in_torch,
    instances,
    timed,
    twin,
    twin_of,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SEEDS",
    "TWINS",
    "Instance",
    "Timed",
    "Twin",
    "composite",
    "in_jax",
    "in_torch",
    "instances",
    "timed",
    "twin",
    "twin_of",
]
