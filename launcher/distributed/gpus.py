"""The GPUs of this machine and what computes on them, as the driver's own nvidia-smi tells it.

Not asked of CUDA, which shows a process one MIG slice at most and nothing of other processes, and keeps a context on
each GPU that it is asked about. nvidia-smi comes with every driver, is NVML as a program, and can neither crash nor
hang this process; NVML itself would have to be called by structures whose sizes differ between drivers.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple
from xml.etree import ElementTree

SECONDS = 30.0  # that nvidia-smi may take: without the persistence daemon it wakes each GPU, which takes 1 to 3 s
SERVER = "nvidia-cuda-mps-server"  # holds a GPU for whoever computes there by way of it, and stays when they have ended


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})" if self.name else f"pid {self.pid}"


@dataclass
class Slice:
    """A MIG slice, which a process uses as if it were a GPU; `uuid` is its name for CUDA."""

    uuid: str
    instance: str = ""  # numbers of its GPU instance and compute instance, as "1/0"; empty where not told
    processes: list[Process] = field(default_factory=list)  # that compute on it


@dataclass
class Gpu:
    """A GPU."""

    index: int  # in the order of the PCI bus
    model: str  # for example "NVIDIA A100-SXM4-40GB"
    uuid: str  # "GPU-..."
    processes: list[Process] = field(default_factory=list)  # that compute on it
    mig: bool = False  # it is in MIG mode, in which only slices of it can be used
    slices: list[Slice] = field(default_factory=list)


# --- What is there --------------------------------------------------------------------------------------------------


def look() -> list[Gpu] | None:
    """The GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says, and the processes on them.

    Returns:
        None where no NVIDIA driver answers.
    """
    listed = _parse_list(_ask("-L"))
    if not listed:
        return None
    with contextlib.suppress(ElementTree.ParseError):  # names and slices are known; processes are not
        known = {gpu.uuid: gpu for gpu in listed}
        for xml in ElementTree.fromstring(_ask("-q", "-x")).iterfind("gpu"):
            if (gpu := known.get(xml.findtext("uuid", "").strip())) is not None:
                _add_details(gpu, xml)
    return listed


def _ask(*words: str) -> str:
    """What nvidia-smi prints; nothing where it is absent or hangs. A broken GPU makes it fail and still list others."""
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def _parse_list(text: str) -> list[Gpu]:
    """What `nvidia-smi -L` lists: a line for each GPU, below it an indented one for each of its MIG slices."""
    found: list[Gpu] = []
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+): (.*) \(UUID: (GPU-\S+)\)", line):
            found.append(Gpu(int(gpu[1]), gpu[2], gpu[3]))
        elif found and (part := re.match(r"\s+MIG .*\(UUID: (MIG-\S+)\)", line)):
            found[-1].mig = True
            found[-1].slices.append(Slice(part[1]))
    return found


def _add_details(gpu: Gpu, xml: ElementTree.Element) -> None:
    """Add what a GPU's part of `nvidia-smi -q -x` tells: MIG mode, instances of the slices, processes."""
    running = list(_processes(xml))
    gpu.processes = [process for _, process in running]
    gpu.mig = gpu.mig or xml.findtext("mig_mode/current_mig", "").strip() == "Enabled"
    instances = [_instance(part) for part in xml.iterfind("mig_devices/mig_device")]  # in the order of their index
    if len(instances) != len(gpu.slices):
        instances = [""] * len(gpu.slices)
    for one, where in zip(gpu.slices, instances, strict=True):
        one.instance = where
        one.processes = [process for at, process in running if not at or not where or at == where]


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
    """What CUDA_VISIBLE_DEVICES leaves."""

    devices: dict[str, str]  # what it calls each, to its UUID
    trouble: str = ""  # why there is less than it names, in words


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
                trouble = f"{entry} is not one GPU of this machine; CUDA ends the list there"
            break
        found += meant
    if len({uuid for _, uuid in found}) < len(found):
        found, trouble = [], "a GPU is there twice, and CUDA shows none"
    return Visible(dict(found), trouble and f"CUDA_VISIBLE_DEVICES={given}: {trouble}")


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
