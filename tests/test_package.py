"""What is handed to others: metadata that agree, and one name in their environment."""

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import flowlab

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_is_one_name_with_all_its_folders_and_data():
    tool = PROJECT["tool"]["setuptools"]
    assert tool["packages"]["find"]["include"] == ["flowlab*"]
    folders = {file.parent for file in (ROOT / "flowlab").rglob("*.py")}
    assert {file.parent for file in (ROOT / "flowlab").rglob("__init__.py")} == folders
    assert all((ROOT / "flowlab" / name).is_file() for name in tool["package-data"]["flowlab"])


def test_one_version_is_named_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == flowlab.__version__
    assert f"\n## {flowlab.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned():
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    extra = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + extra["test"] + extra["ray"] + extra["slurm"]
    names = {requirement.partition(">")[0].lower() for requirement in wanted}
    assert names <= pinned


def test_names_are_loaded_from_where_type_checkers_find_them():
    tree = ast.parse((ROOT / "flowlab" / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(homes) == flowlab.__all__ and set(homes) <= {*dir(flowlab)}
    for name, home in homes.items():
        assert getattr(flowlab, name) is getattr(import_module(home), name)


def test_parts_are_loaded_when_named_and_other_names_refused():
    assert flowlab.lessons is import_module("flowlab.lessons")
    with pytest.raises(AttributeError, match="module 'flowlab' has no attribute 'mesure'"):
        flowlab.mesure  # noqa: B018
