"""Dependencies run one way; the imports themselves are read, not run."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "flowlab"
# Every part of flowlab, each above all that it may import.
ORDER = ["errors", "numba_private", "compilation", "progress", "schema", "notebook", "analysis"]
ORDER += ["cache", "vectors", "kernel", "numerics", "layer", "initializers", "layers", "data"]
ORDER += ["optimizers", "settings", "storage", "networks", "measurement", "ahead", "training"]
ORDER += ["laws", "instruments", "lessons", "theory", "registration", "prediction", "runs"]
ORDER += ["figures", "modules", "claims", "studies", "report"]
# Parts that a subject must do without, although they lie beneath it.
APART = {
    "theory": {"layer", "layers", "networks", "measurement", "settings"},
    "analysis": {"measurement", "theory", "networks", "layers"},
    "figures": {"measurement", "theory", "prediction", "networks", "layers"},
    "storage": {"measurement", "theory", "networks", "layers"},
}


def modules(package=PACKAGE):
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
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


def graph(found):
    """Each module with the modules that it imports; a package stands for its ``__init__``."""
    edges = {}
    for name, path in found.items():
        named = {n if n in found else n.rpartition(".")[0] for n in imports(path)}
        edges[name] = (named & found.keys()) - {name}
    return edges


MODULES = modules()
TESTS = modules(ROOT / "tests")
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


def test_every_part_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(PARTS)


@pytest.mark.parametrize("part", ORDER)
def test_a_part_imports_only_what_stands_before_it(part):
    assert parts_used(part) <= set(ORDER[: ORDER.index(part)])


def test_no_module_is_reached_from_itself():
    sorted(TopologicalSorter(graph(MODULES)).static_order())


def test_a_circle_would_be_found(tmp_path):
    package = tmp_path / "ring"
    package.mkdir()
    for name, imported in (("a", "b"), ("b", "c"), ("c", "a")):
        (package / f"{name}.py").write_text(f"def late():\n    from ring.{imported} import x\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(modules(package))).static_order())


def test_tests_import_helpers_and_no_test():
    for name, path in TESTS.items():
        used = {n for n in imports(path) if n.split(".")[0] == "tests"}
        assert all(n.startswith("tests.support") for n in used), name


def test_folders_of_tests_are_those_of_flowlab():
    folders = {name.split(".")[1] for name in TESTS if name.count(".") > 1}
    packages = {name.split(".")[1] for name in MODULES if name.count(".") > 1}
    assert folders - {"docs", "experiments", "support"} <= packages


def test_a_class_has_a_name_of_its_own():
    files = [*MODULES.values(), *(ROOT / "experiments").rglob("*.py")]
    trees = (ast.parse(path.read_text()) for path in files)
    names = [n.name for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)]
    assert {name for name, count in Counter(names).items() if count > 1} == set()


@pytest.mark.parametrize("part", APART)
def test_what_stands_apart_does_without(part):
    assert not parts_used(part) & APART[part]


def test_nothing_below_experiments_knows_hydra():
    assert not importers(lambda n: n.split(".")[0] in ("hydra", "omegaconf", "experiments", "conf"))


def test_kernels_are_compiled_in_one_way():
    users = importers(lambda n: n.split(".")[0] in ("numba", "llvmlite"))
    # Beside the decorator: the disk cache, 32-bit integers, functions by type, register tiles.
    extensions = {"numba_private", "numerics.random", "numerics.elementary", "layers.convolution"}
    assert users <= {"flowlab.kernel", *(f"flowlab.{name}" for name in extensions)}
    private = importers(lambda n: re.match(r"numba\.(?!extending\.)\w+\.", n))
    assert private == {"flowlab.numba_private"}
    jits = importers(lambda n: n.startswith("numba.") and n.endswith("jit"))
    assert jits <= {"flowlab.kernel", "flowlab.numerics.elementary"}


@pytest.mark.parametrize(
    "code, heavy",
    [
        ("flowlab", ["numpy", "scipy", "pandas", "pyarrow", "numba"]),
        ("flowlab.run", ["matplotlib", "sklearn", "hydra", "omegaconf", "jax", "torch"]),
        ("flowlab.run", ["scipy.stats", "scipy.optimize", "pyarrow.parquet", "pyarrow.dataset"]),
    ],
)
def test_importing_flowlab_stays_light(code, heavy):
    code = f"import sys, flowlab; {code}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
