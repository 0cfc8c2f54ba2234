"""PyTorch is optional, and looked for when it is used."""

from importlib.util import find_spec

from flowlab.errors import InputError


def torch_needed() -> None:
    """Raise InputError in one line where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise InputError("PyTorch must be installed for this: pip install 'flowlab[torch]'")
