"""The GPUs of this machine and what computes on them, as the driver's own nvidia-smi tells it.

Not asked of CUDA, which shows a process one MIG slice at most and nothing of other processes, and keeps a context on
each GPU that it is asked about. nvidia-smi comes with every driver, is NVML as a program, and can neither crash nor
hang this process; NVML itself would have to be called by structures whose sizes differ between drivers.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple
from xml.etree import ElementTree

from launcher.core.errors import ConfigError

SECONDS = 30.0  # that nvidia-smi may take: without the persistence daemon it wakes each GPU, which takes 1 to 3 s
SERVER = "nvidia-cuda-mps-server"  # holds a GPU for whoever computes there by way of it, and stays when they have ended


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})" if self.name else f"pid {self.pid}"


@dataclass(frozen=True)
class Slice:
    """A MIG slice, which a process uses as if it were a GPU.

    Attributes:
        uuid: Its name for CUDA.
        instance: Numbers of its GPU instance and compute instance, as "1/0"; empty where the driver does not say.
        processes: What computes on it.
    """

    uuid: str
    instance: str = ""
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        index: Its number, in the order of the PCI bus.
        model: For example "NVIDIA A100-SXM4-40GB".
        uuid: "GPU-..."
        processes: What computes on it.
        mig: Whether it is in MIG mode, in which only slices of it can be used.
        slices: Those.
    """

    index: int
    model: str
    uuid: str
    processes: tuple[Process, ...] = ()
    mig: bool = False
    slices: tuple[Slice, ...] = ()


# --- What is there --------------------------------------------------------------------------------------------------


def look() -> list[Gpu] | None:
    """The GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says, and the processes on them.

    Returns:
        None where no NVIDIA driver answers.
    """
    listed = _parse_list(_ask("-L"))
    if not listed:
        return None
    try:
        root = ElementTree.fromstring(_ask("-q", "-x"))
        details = {gpu.findtext("uuid", "").strip(): gpu for gpu in root.iterfind("gpu")}
    except ElementTree.ParseError:
        details = {}  # names and slices are known; processes are not
    return [_detailed(gpu, details.get(gpu.uuid)) for gpu in listed]


def _ask(*words: str) -> str:
    """What nvidia-smi prints; nothing where it is absent or hangs. A broken GPU makes it fail and still list others."""
    try:
        done = subprocess.run(["nvidia-smi", *words], stdout=-1, stderr=-3, stdin=-3, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def _parse_list(text: str) -> list[Gpu]:
    """What `nvidia-smi -L` lists: a line for each GPU, below it an indented one for each of its MIG slices."""
    found: list[Gpu] = []
    slices: dict[int, list[Slice]] = {}
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+): (.*) \(UUID: (GPU-\S+)\)", line):
            found.append(Gpu(int(gpu[1]), gpu[2], gpu[3]))
        elif found and (part := re.match(r"\s+MIG .*\(UUID: (MIG-\S+)\)", line)):
            slices.setdefault(found[-1].index, []).append(Slice(part[1]))
    return [
        Gpu(gpu.index, gpu.model, gpu.uuid, (), gpu.index in slices, tuple(slices.get(gpu.index, ()))) for gpu in found
    ]


def _detailed(gpu: Gpu, xml: ElementTree.Element | None) -> Gpu:
    """A listed GPU with what its part of `nvidia-smi -q -x` adds: MIG mode, instances of the slices, processes."""
    if xml is None:
        return gpu
    running = list(_processes(xml))
    instances = [_instance(part) for part in xml.iterfind("mig_devices/mig_device")]  # in the order of their index
    if len(instances) != len(gpu.slices):
        instances = [""] * len(gpu.slices)
    slices = tuple(
        Slice(one.uuid, where, tuple(process for at, process in running if not at or not where or at == where))
        for one, where in zip(gpu.slices, instances, strict=True)
    )
    mig = gpu.mig or xml.findtext("mig_mode/current_mig", "").strip() == "Enabled"
    return Gpu(gpu.index, gpu.model, gpu.uuid, tuple(process for _, process in running), mig, slices)


def _processes(xml: ElementTree.Element) -> Iterator[tuple[str, Process]]:
    """Instance (empty for a whole GPU) and process of all that compute on a GPU.

    What also draws ("C+G") is a desktop: it has a GPU for good, and hardly computes on it.
    """
    for entry in xml.iterfind("processes/process_info"):
        kinds, pid = entry.findtext("type", "").strip().split("+"), entry.findtext("pid", "").strip()
        name = PurePath(entry.findtext("process_name", "").strip().partition(" ")[0]).name
        if "C" in kinds and "G" not in kinds and pid.isdigit() and name != SERVER:
            hidden = name.startswith("[")  # [Not Found], [Insufficient Permissions]
            yield _instance(entry), Process(int(pid), "" if hidden else name)


def _instance(xml: ElementTree.Element) -> str:
    numbers = [xml.findtext(name, "").strip() for name in ("gpu_instance_id", "compute_instance_id")]
    return "/".join(numbers) if all(map(str.isdigit, numbers)) else ""


# --- What CUDA_VISIBLE_DEVICES leaves of it ---------------------------------------------------------------------------


class Visible(NamedTuple):
    """What CUDA_VISIBLE_DEVICES leaves.

    Attributes:
        devices: What it calls each, to its UUID.
        trouble: Why there is less than it names, in words; empty where there is not.
    """

    devices: dict[str, str]
    trouble: str = ""


def visible(gpus: Sequence[Gpu], given: str | None) -> Visible:
    """The devices that runs can have: whole GPUs, and slices of those in MIG mode.

    Args:
        gpus: All, in the order in which CUDA numbers them.
        given: CUDA_VISIBLE_DEVICES: numbers, UUIDs or how they begin, or names of slices. As CUDA has it, what follows
            a name that is unknown or not clear does not count, and nothing does where something is there twice. A GPU
            in MIG mode stands for all of its slices, of which CUDA would take the first.
    """
    if given is None:
        return Visible({name: uuid for number, gpu in enumerate(gpus) for name, uuid in _units(gpu, str(number))})
    found: list[tuple[str, str]] = []
    trouble = ""
    for entry in map(str.strip, given.split(",")):
        if not (meant := _meant(gpus, entry)):
            if entry != "-1":  # which is there to end the list
                trouble = (
                    f"CUDA_VISIBLE_DEVICES={given}: {entry} is not one GPU of this machine; CUDA ends the list there"
                )
            break
        found += meant
    if len({uuid for _, uuid in found}) < len(found):
        return Visible({}, f"CUDA_VISIBLE_DEVICES={given}: a GPU is there twice, and CUDA shows none")
    return Visible(dict(found), trouble)


def _units(gpu: Gpu, name: str) -> list[tuple[str, str]]:
    return [(one.uuid, one.uuid) for one in gpu.slices] if gpu.mig else [(name, gpu.uuid)]


def _meant(gpus: Sequence[Gpu], entry: str) -> list[tuple[str, str]]:
    """The devices that an entry of CUDA_VISIBLE_DEVICES stands for."""
    if entry.isdigit():
        return _units(gpus[int(entry)], entry) if int(entry) < len(gpus) else []
    if entry.startswith("MIG-"):  # before driver 470 MIG-GPU-.../1/0, which newer ones understand as well
        slices = [(one, f"MIG-{gpu.uuid}/{one.instance}") for gpu in gpus for one in gpu.slices]
        those = [one.uuid for one, old in slices if one.uuid.startswith(entry) or old == entry]
        return [(those[0], those[0])] if len(those) == 1 else []
    whole = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return _units(whole[0], entry) if len(whole) == 1 else []


def computing(gpus: Sequence[Gpu]) -> dict[str, str]:
    """UUID of each GPU and slice that processes compute on, to these in words."""
    found: dict[str, str] = {}
    for gpu in gpus:
        devices: list[Gpu | Slice] = [gpu, *gpu.slices]
        found |= {one.uuid: ", ".join(map(str, one.processes)) for one in devices if one.processes}
    return found


# --- Which of them a rank takes ---------------------------------------------------------------------------------------


def index_of_rank(count: int, local_rank: int, local_world_size: int) -> int | None:
    """Which of the GPUs that a process sees is its own.

    Where the launcher shows each process one GPU, as SLURM does for --gpus-per-task=1 and --gpu-bind=single:1, that is
    number 0, whatever the rank. Accelerate counts the same way (`PartialState.set_device`: local rank modulo count).

    Args:
        count: GPUs that the process sees.
        local_rank: Among the ranks of its machine.
        local_world_size: Ranks on its machine.

    Returns:
        None where there are too few.
    """
    if count >= local_world_size:
        return local_rank
    return 0 if count == 1 else None


def check_devices(devices: Sequence[Mapping[str, str | None]]) -> None:
    """Check that the ranks of a run are on devices of one kind, and each on its own.

    Args:
        devices: Of each rank: `host`, `kind` (cpu or gpu), and `gpu`, what tells its GPU from all others; None where
            it sees as many as there are ranks on its machine.

    Raises:
        ConfigError: They are not.
    """
    first = {str(device["kind"]): rank for rank, device in reversed([*enumerate(devices)])}
    if len(first) > 1:
        with_gpu, without = (f"rank {first[kind]} on {devices[first[kind]]['host']}" for kind in ("gpu", "cpu"))
        raise ConfigError(f"{with_gpu} has a GPU, and {without} has none: give every rank one, or use device=cpu.")
    owners: dict[str, int] = {}
    for rank, device in enumerate(devices):
        if (gpu := device["gpu"]) is None:
            continue
        if gpu in owners:
            raise ConfigError(
                f"ranks {owners[gpu]} and {rank} have the same GPU of {device['host']} ({gpu}): start one process per "
                "GPU, use device=cpu, or, to try several processes on a GPU, device=shared."
            )
        owners[gpu] = rank


def identity(index: int) -> str:
    """What tells a GPU that this process sees from all others: its UUID, or the name of a MIG slice.

    It starts CUDA, but makes no context.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if given.startswith("MIG-"):
        return given.split(",")[0]
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
