"""What Hydra does not promise to keep is there, and is used in one file."""

import pkgutil
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["_internal.utils._run_hydra", "_internal.utils.get_args_parser"]
NAMES += ["_internal.hydra.Hydra.get_mode"]
NAMES += ["_internal.core_plugins.basic_launcher.BasicLauncher"]
ATTRIBUTES = ["_convert_value", "_value"]


def find(name):
    with suppress(ImportError, AttributeError):
        return pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_hydra_has_the_private_name(name):
    assert find(f"hydra.{name}"), f"Hydra {hydra.__version__} lacks {name}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_override_has_the_private_attribute(name):
    found = {*vars(Override), *(field.name for field in fields(Override))}
    assert name in found, f"Override of Hydra {hydra.__version__} lacks {name}"


def test_one_file_uses_them():
    private = rf"hydra\._|\.({'|'.join(ATTRIBUTES)})\b"
    files = sorted((ROOT / "experiments").rglob("*.py"))
    users = [file.name for file in files if re.search(private, file.read_text())]
    assert users == ["hydra_private.py"]


def test_the_configuration_of_a_run_is_composed_once(call, monkeypatch):
    composed, compose = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda self, **given: composed.append(given["overrides"]) or compose(self, **given),
    )
    assert call("depth=3", "width=8", "batch_size=8", "seeds=2")[0] == 0
    assert composed == [["depth=3", "width=8", "batch_size=8", "seeds=2", "hydra.mode=RUN"]]
