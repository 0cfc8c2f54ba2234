"""Dependencies run one way; the imports themselves are read, not run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "flowlab"
# Measurement, each part above what it may import.
ORDER = ["kernel", "layer", "layers", "networks", "measure"]
MEASUREMENT = ["blas", "kernel", "random", "scale", "elementary", "initializers", "tables", "data"]
MEASUREMENT += [part for part in ORDER if part not in MEASUREMENT]
ANALYSIS = {"theory", "statistics", "figures", "verdicts", "summary", "report", "prediction"}
ANALYSIS |= {"batch_law", "batch_examples", "batch_demos"}
# Parts that stand apart, with all of flowlab that they may import.
APART = {
    "errors": set(),
    "files": {"errors"},
    "theory": {"errors", "blas"},
    "statistics": {"errors"},
    "verdicts": {"errors", "statistics"},
    "tables": {"errors", "files"},
    "batch_law": {"statistics", "errors", "tables"},
    "figures": {"batch_law", "statistics", "verdicts", "errors", "files", "tables"},
}


def modules():
    """Every module of flowlab by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path):
    """The dotted names that a file imports anywhere in it; relative imports do not occur."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = modules()
PARTS = {name.split(".")[1] for name in MODULES if "." in name}


def parts_used(part):
    """The parts of flowlab that any module of ``part`` imports, itself left out."""
    used = set()
    for name, path in MODULES.items():
        if name.split(".")[1:2] == [part]:
            used |= {n.split(".")[1] for n in imports(path) if n.startswith("flowlab.")}
    return (used & PARTS) - {part}


def importers(test):
    """The modules with an import whose dotted name passes ``test``."""
    return {name for name, path in MODULES.items() if any(map(test, imports(path)))}


def test_the_parts_named_here_exist():
    assert set(ORDER) | set(APART) - {"figures"} | set(MEASUREMENT) <= PARTS


@pytest.mark.parametrize("position", range(len(ORDER)))
def test_layers_build_on_kernels_and_never_the_reverse(position):
    assert not parts_used(ORDER[position]) & set(ORDER[position + 1 :])


@pytest.mark.parametrize("part", MEASUREMENT)
def test_measurement_never_imports_analysis(part):
    assert not parts_used(part) & ANALYSIS


@pytest.mark.parametrize("part", APART)
def test_what_stands_apart_imports_little(part):
    assert parts_used(part) <= APART[part]


def test_nothing_below_experiments_knows_hydra():
    assert not importers(lambda n: n.split(".")[0] in ("hydra", "omegaconf", "experiments", "conf"))


def test_kernels_are_compiled_in_one_way():
    users = importers(lambda n: n.split(".")[0] in ("numba", "llvmlite"))
    # Beside the decorator: the disk cache, 32-bit integers, functions by type, register tiles.
    extensions = {"compiled", "random", "measure", "elementary", "layers.convolution"}
    assert users <= {"flowlab.kernel", *(f"flowlab.{name}" for name in extensions)}
    jits = importers(lambda n: n.startswith("numba.") and n.endswith("jit"))
    assert jits <= {"flowlab.kernel", "flowlab.elementary"}


def test_importing_flowlab_stays_light():
    heavy = ["matplotlib", "sklearn", "hydra", "omegaconf", "jax", "torch", "pyarrow.dataset"]
    code = f"import sys, flowlab; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
