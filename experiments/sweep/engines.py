"""What each engine that does a sweep's parts needs: how large they are, with which means.

Engines are Hydra's launchers: this machine's processes, and Ray's and submitit's by their plugins.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.hydra_private import OWN
from experiments.sweep import machine, pool
from experiments.sweep.work import ATTEMPTS, Work
from flowlab.errors import InputError

LOCAL = "hydra_plugins.flowlab.Local"
_PARTS = 256  # jobs that a cluster is given at most, unless the user says otherwise
_FEW = 8  # conditions that are quicker done by one process than by several that start first
_LARGEST = 32  # conditions that one of this machine's processes does at a time
_LINE = 300  # characters of an engine's error
_ANSWER = 10.0  # seconds in which a Ray cluster must answer


class Means(NamedTuple):
    """``part`` conditions go into a job, which has ``threads`` (None: as many as there are cores)
    and one of ``share`` equal parts of a machine's memory.
    """

    part: int
    threads: int | None
    share: int


def means(launcher: DictConfig, count: int) -> Means:
    """The means by which a launcher does ``count`` conditions; sets how many processes it has."""
    cores = machine.cores()
    if launcher._target_ == LOCAL:
        workers = min(launcher.workers or (cores if count >= _FEW else 1), count)
        launcher.workers = workers
        part = min(-(-count // (8 * workers)), _LARGEST)
        return Means(part, max(cores // workers, 1), workers)
    if launcher._target_.startswith(OWN):  # one job after the other
        return Means(min(-(-count // 8), _LARGEST), None, 1)
    if launcher._target_.endswith("submitit_launcher.LocalLauncher"):  # all jobs at once
        return Means(-(-count // cores), 1, cores)
    threads = OmegaConf.select(launcher, "ray.remote.num_cpus") or launcher.get("cpus_per_task")
    return Means(-(-count // _PARTS), max(int(threads or 1), 1), 1)


@dataclass(frozen=True)
class Apart(Work):
    """Work of which every part has a process of its own: what kills it does not end the job."""

    def __call__(self, config: DictConfig) -> str | None:
        return pool.run(self, [HydraConfig.get().job.num], workers=1)


def task(launcher: DictConfig, work: Work) -> Work:
    """The work as the launcher's jobs do it; submitit gives a job up that dies, Ray does not."""
    return Apart(**vars(work)) if ".submitit_" in launcher._target_ else work


def check(launcher: DictConfig) -> None:
    """Raise InputError where no Ray cluster answers at an address; Ray would wait for minutes."""
    given = OmegaConf.select(launcher, "ray.init.address")
    address = given or (os.environ.get("RAY_ADDRESS", "") if "ray" in launcher else "")
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdigit():
        return  # none, auto, local: Ray looks on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address} ({error})") from None
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # whoever listens there speaks to those alone who have Ray's certificates
    import grpc

    try:
        with grpc.insecure_channel(place) as channel:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER)
    except grpc.FutureTimeoutError:
        raise InputError(
            f"no Ray cluster answers at {address} (something listens there and says nothing)"
        ) from None


def complete(launcher: DictConfig, part: int) -> None:
    """Set what the user of Ray has not: where it is, that it is quiet, how patient."""
    if "ray" not in launcher:
        return
    with open_dict(launcher.ray):
        if launcher.ray.init.get("address") is None and "RAY_ADDRESS" not in os.environ:
            launcher.ray.init.address = "local"  # else Ray looks for the last one, dead perhaps
        launcher.ray.init.setdefault("log_to_driver", False)
        launcher.ray.init.setdefault("logging_level", "ERROR")
        # Hydra's launcher sets a size otherwise, which clusters that exist already refuse.
        launcher.ray.init.setdefault("object_store_memory", None)
        # A deadly condition is given up after ATTEMPTS; a node that dies costs an attempt too.
        launcher.ray.remote.setdefault("max_retries", ATTEMPTS * part)
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or (Path.home() / ".ray" / "auth_token").exists():
        # Ray's clusters ask for the token by default; those who connect do not show it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def reason(error: Exception) -> str:
    """What an engine's error says, in one line, and the last line of what caused it."""
    text = shorten(str(error), _LINE, placeholder=" ...") or type(error).__name__
    cause = str(error.__cause__ or "").strip().splitlines()
    return f"{text} ({shorten(cause[-1], _LINE, placeholder=' ...')})" if cause else text
