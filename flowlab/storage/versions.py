"""Which code made a number: versions of Python and packages, and flowlab's down to its sources."""

import hashlib
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"  # pyproject.toml reads it from here
PACKAGES = ("numpy", "scipy", "numba", "pandas", "pyarrow")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the packages that make the numbers, and of others if installed.

    flowlab's ends in a digest of its sources and bundled data, as in ``0.1.0+3f2a91c0``. Where
    compiled vectors may have two widths, it is named: the last digits of norms depend on it.
    """
    from flowlab import vectors  # and Numba: a version is asked for without them

    found = {"python": platform.python_version(), "flowlab": f"{__version__}+{_code()}"}
    if vectors.eligible():
        found["vectors"] = f"{vectors.width()} bits"
    return found | {name: number for name in (*PACKAGES, *others) if (number := _installed(name))}


@cache
def _installed(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


@cache
def _code() -> str:
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.glob("*.csv.gz")]):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
