"""Test processes keep compiled kernels of their own: Numba's cache is not safe for two writers."""

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "numba"
os.environ["NUMBA_CACHE_DIR"] = str(CACHE / os.environ.get("PYTEST_XDIST_WORKER", "alone"))
