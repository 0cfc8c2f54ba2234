"""The names of Hydra that it does not promise to keep. No other file uses such names.

pyproject.toml admits the versions of Hydra that are known to have them.
"""

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra as run_hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override

__all__ = ["OWN", "converted", "get_args_parser", "raw", "run_hydra"]

OWN = "hydra._internal."  # begins the _target_ of Hydra's own launchers and sweepers

# Without -m or hydra.mode Hydra composes the configuration twice, once to read the mode from it;
# here -m alone decides.
Hydra.get_mode = lambda self, config_name, overrides: None

# A parsed value as a configuration takes it.
converted = Override._convert_value


def raw(override: Override):
    """The value of an override as it was parsed, quotes and sweeps unresolved."""
    return override._value
