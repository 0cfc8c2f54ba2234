"""Names of Numba that are not part of its public interface, each imported here and nowhere else.

``pyproject.toml`` bounds Numba's version from above; ``tests/test_cache.py`` fails where a name is
missing.
"""

from numba.core import cgutils, config, event
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
from numba.np.arrayobj import make_array

__all__ = [
    "Dispatcher",
    "FunctionCache",
    "IndexDataCacheFile",
    "cgutils",
    "config",
    "event",
    "make_array",
    "rtsys",
]
