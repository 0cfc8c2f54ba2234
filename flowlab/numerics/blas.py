"""BLAS in one thread: small products are faster, neighbours freer, and bits are always the same.

How a product is divided among threads decides how its sums are rounded.
"""

from collections.abc import Callable
from functools import cache, lru_cache, wraps

import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController


def one_thread():
    """A context in which matrix products take one thread, in the whole process."""
    return _blas().limit(limits=1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def kept(maxsize: int) -> Callable:
    """``lru_cache`` for what products make: the same bits whoever asked first."""

    def decorate(function: Callable) -> Callable:
        @lru_cache(maxsize=maxsize)
        @wraps(function)
        def in_one_thread(*arguments, **options):
            with one_thread():
                return function(*arguments, **options)

        return in_one_thread

    return decorate
