"""Names of Numba that are not part of its public interface, each imported here and nowhere else.

``pyproject.toml`` bounds Numba's version from above; ``tests/test_cache.py`` fails where a name is
missing.
"""

from llvmlite import binding
from numba import __version__ as numba_version
from numba.core import cgutils, config, event
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import get_host_cpu_features as host_features
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
from numba.np.arrayobj import make_array

__all__ = [
    "Dispatcher",
    "FunctionCache",
    "IndexDataCacheFile",
    "binding",
    "cgutils",
    "config",
    "event",
    "host_features",
    "make_array",
    "numba_version",
    "rtsys",
]
