"""The machine that the times are of: processor, cores, vectors and the library of products."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import llvmlite.binding
import numba
import scipy.linalg.cython_blas  # noqa: F401  whose library kernels multiply with
from threadpoolctl import threadpool_info


def machine() -> dict:
    """``processor``, ``cores``, ``bits`` of a vector, its ``instructions``, and ``blas``.

    ``bits`` is what compiled kernels use: LLVM may prefer vectors narrower than the machine's.
    """
    features = _features()
    names = [name for name in ("avx512f", "avx2", "fma", "neon", "sve") if f"+{name}" in features]
    wide = "+avx512f" in features and "+prefer-256-bit" not in features
    narrow = 256 if "+avx" in features else 128
    return {
        "processor": _processor(),
        "cores": _cores(),
        "bits": 512 if wide else narrow,
        "instructions": names,
        "blas": sorted({_named(own) for own in threadpool_info() if own["user_api"] == "blas"}),
    }


def words(found: dict) -> str:
    """The machine in one line."""
    cores = "1 core" if found["cores"] == 1 else f"{found['cores']} cores"
    instructions = f" ({', '.join(found['instructions'])})" if found["instructions"] else ""
    return (
        f"{found['processor']}, {cores}; kernels use vectors of {found['bits']} bits"
        f"{instructions}; products by {', '.join(found['blas']) or 'an unknown library'}"
    )


def _features() -> set[str]:
    given = numba.config.CPU_FEATURES
    return set((given or llvmlite.binding.get_host_cpu_features().flatten()).split(","))


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "an unknown processor"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _named(own: dict) -> str:
    kind = own.get("architecture")
    text = f"{own['internal_api']} {own['version'] or ''}".strip()
    return f"{text} for {kind}" if kind else text
