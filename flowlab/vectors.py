"""How wide compiled vectors are on processors with AVX-512: 256 bits, as LLVM prefers, or 512.

An instruction on 512 bits does twice the work, and may slow the clock down. So a machine measures
both once, before it compiles anything else, and keeps the answer beside the compiled code; the
environment's ``FLOWLAB_VECTORS`` decides in its place. Sums are formed in vectors, so the last
digits of norms depend on the width: the metadata of runs name it. Other processors have no choice.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from flowlab.errors import InputError
from flowlab.numba_private import FunctionCache, binding, config, host_features, numba_version

VARIABLE = "FLOWLAB_VECTORS"
WIDTHS = (256, 512)  # bits
GAIN = 1.05  # by which the wider vectors must be faster to be taken
_ROUNDS = 7
_WIDE = "-prefer-256-bit"


def check() -> None:
    """Raise InputError where the environment asks for a width that is none."""
    if os.environ.get(VARIABLE, "") not in ("", *map(str, WIDTHS)):
        raise InputError(f"{VARIABLE} must be 256 or 512; got {os.environ[VARIABLE]}")


def settle() -> None:
    """Settle the width for this process, before its first compilation, and for those it starts."""
    if eligible():
        os.environ[VARIABLE] = os.environ.get(VARIABLE) or str(_kept())
        if os.environ[VARIABLE] == "512":
            config.CPU_FEATURES = f"{host_features()},{_WIDE}"


def eligible() -> bool:
    """Has the processor AVX-512, and are LLVM's features not the user's matter?"""
    return width() == 512 or (config.CPU_FEATURES is None and "+avx512f" in host_features())


def width() -> int:
    """The bits of the vectors that this process asks LLVM for."""
    return 512 if (config.CPU_FEATURES or "").endswith(_WIDE) else 256


def faster(narrow: dict[str, float], wide: dict[str, float]) -> int:
    """The width to take, by the seconds of the same kernels at both: 512 if it gains GAIN."""
    gains = [math.log(narrow[name] / wide[name]) for name in narrow]
    return 512 if sum(gains) / len(gains) >= math.log(GAIN) else 256


def _kept() -> int:
    """The width that this machine measured, now or before; 256 where nothing can be kept."""
    name = re.sub(r"\W+", "-", f"vectors-{binding.get_host_cpu_name()}-numba-{numba_version}")
    with suppress(OSError, RuntimeError):  # RuntimeError: as Numba says that no folder is writable
        path = Path(FunctionCache(settle).cache_path, f"{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if (known := _read(path)) is None:
                known = _measured()
                _write(path, known)
        return known
    return 256


def _read(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        return known if known in WIDTHS else None
    return None


def _write(path: Path, known: int) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(known, file)
    os.replace(file.name, path)


def _measured() -> int:
    """Time kernels at both widths in processes of their own; 256 where these fail."""
    if not os.environ.get("FLOWLAB_QUIET"):
        said = "measuring, once, whether 512-bit vectors are faster"
        print(f"{said} ({VARIABLE}=256 or 512 spares it)", file=sys.stderr, flush=True)
    trials = [_trial(bits) for bits in WIDTHS]
    try:
        best: list[dict[str, float]] = [{}, {}]
        for _ in range(_ROUNDS):
            for trial, known in zip(trials, best, strict=True):  # in turn, as the machine may vary
                trial.stdin.write("\n")
                trial.stdin.flush()
                for kernel, seconds in json.loads(trial.stdout.readline()).items():
                    known[kernel] = min(seconds, known.get(kernel, math.inf))
        return faster(*best)
    except (OSError, ValueError):
        return 256
    finally:
        for trial in trials:
            trial.kill()
            trial.communicate()


def _trial(bits: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from flowlab.numerics import vector_trial as t; t.main()"],
        env=os.environ | {VARIABLE: str(bits)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
