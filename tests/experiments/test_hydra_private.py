"""What Hydra does not promise to keep is there, and is used in one file."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.types import Override

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["_internal.utils._run_hydra", "_internal.utils.get_args_parser"]
NAMES += ["_internal.core_plugins.basic_launcher.BasicLauncher"]
ATTRIBUTES = ["_convert_value", "_value"]


@pytest.mark.parametrize("name", NAMES)
def test_hydra_has_the_private_name(name):
    module, _, attribute = f"hydra.{name}".rpartition(".")
    assert hasattr(import_module(module), attribute), f"Hydra {hydra.__version__} lacks {name}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_override_has_the_private_attribute(name):
    found = {*vars(Override), *(field.name for field in fields(Override))}
    assert name in found, f"Override of Hydra {hydra.__version__} lacks {name}"


def test_one_file_uses_them():
    private = rf"hydra\._|\.({'|'.join(ATTRIBUTES)})\b"
    files = sorted((ROOT / "experiments").rglob("*.py"))
    users = [file.name for file in files if re.search(private, file.read_text())]
    assert users == ["hydra_private.py"]
