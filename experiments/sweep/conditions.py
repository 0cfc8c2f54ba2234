"""From overrides to conditions: every combination of the values that a sweep names.

Hydra composes a configuration by reading and merging files, which costs tens of milliseconds. The
values of plain settings change no file that is read: so each distinct choice of groups is composed
once, and values are set, in the types of the schema, in what was composed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.command import keys
from experiments.hydra_private import converted
from flowlab.errors import InputError
from flowlab.settings import Settings, from_plain


@dataclass(frozen=True)
class Condition:
    """One combination: its overrides as a user writes them, and the settings they stand for.

    ``refusal`` is the rule that the settings break, if they do.
    """

    overrides: str
    settings: Settings
    refusal: str | None = None


def conditions(loader, config: DictConfig, overrides: Sequence[str]) -> list[Condition]:
    """Every combination of the overrides' values, the last override's varying fastest.

    Raises InputError for an empty sweep, HydraException or OmegaConf's errors where a value has no
    place in the schema.
    """
    axes = _axes(loader, overrides)
    settable = set(keys())
    varying = [key for key, values in axes.items() if len(values) > 1]
    plain = [key for key in varying if key in settable]
    composed: dict[tuple, _Composed] = {}
    found = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        groups = tuple(f"{key}={chosen[key][0]}" for key in axes if key not in plain)
        if groups not in composed:
            composed[groups] = _Composed(loader.load_sweep_config(config, list(groups)))
        settings = composed[groups].settings({key: chosen[key] for key in plain})
        text = " ".join(f"{key}={chosen[key][0]}" for key in varying) or " ".join(overrides)
        try:
            found.append(Condition(text, settings.validate()))
        except InputError as error:
            found.append(Condition(text, settings, str(error)))
    return found


def _axes(loader, overrides: Sequence[str]) -> dict[str, list[tuple[str, Any]]]:
    """The values of every key, each as (text, value)."""
    axes: dict[str, list[tuple[str, Any]]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [(override.get_value_element_as_str(), override.value())]
            continue
        if not override.is_discrete_sweep():
            raise InputError(
                f"a sweep lists its values, as in {key}=1,2; got {override.input_line}"
            )
        texts = override.sweep_string_iterator()
        values = override.sweep_iterator(transformer=converted)
        axes[key] = list(zip(texts, values, strict=True))
        if not axes[key]:
            raise InputError(f"a sweep needs values; got none in {override.input_line}")
        if key == "experiment":
            raise InputError(f"experiment must be one in a sweep; got {override.input_line}")
    return axes


class _Composed:
    """A composed configuration in which plain settings take other values."""

    def __init__(self, config: DictConfig):
        with open_dict(config):
            config.pop("hydra", None)
        self._config, self._typed = config, {}
        # Values that are made of others follow them, and so must be resolved anew.
        self._fixed = "${" not in OmegaConf.to_yaml(config)
        self._plain = OmegaConf.to_container(config, resolve=True)

    def settings(self, values: dict[str, tuple[str, Any]]) -> Settings:
        """The settings with these (text, value) of dotted keys, not validated."""
        for key, (text, value) in values.items():
            if (key, text) not in self._typed or not self._fixed:
                OmegaConf.update(self._config, key, value)
                self._typed[key, text] = OmegaConf.select(self._config, key)
        if not self._fixed:
            return from_plain(OmegaConf.to_container(self._config, resolve=True))
        plain = {k: dict(v) if isinstance(v, dict) else v for k, v in self._plain.items()}
        for key, (text, _) in values.items():
            *group, name = key.split(".")
            (plain[group[0]] if group else plain)[name] = self._typed[key, text]
        return from_plain(plain)
