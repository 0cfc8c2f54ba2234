"""Text files, written whole or not at all."""

import os
from pathlib import Path

from flowlab.tables import storing


def write_text(text: str, path: str | Path) -> Path:
    """Write a file in one step; raises StorageError where the folder or the disk refuses."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path
