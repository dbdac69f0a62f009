"""The devices of this machine that trials may have."""

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.distributed import gpus

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, and of Windows for its Linux


def may_have_gpus() -> bool:
    """Whether it is worth asking torch for GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and any(map(os.path.exists, DRIVERS))


def visible_gpus(listed: Sequence[gpus.Gpu] | None) -> dict[str, str]:
    """The GPUs and MIG slices that runs can have, of those that `gpus.look` found.

    It asks torch, and may start the driver: for a process that ends.

    Returns:
        What CUDA_VISIBLE_DEVICES calls each, to the name of its lock: the same whatever it was called by.
    """
    import torch

    if listed is None or torch.version.hip:
        return _asked_of_torch()
    if not torch.backends.cuda.is_built():
        return {}
    given, ordered = os.environ.get("CUDA_VISIBLE_DEVICES"), list(listed)
    # CUDA numbers the fastest first, nvidia-smi as they are plugged in; among equal ones that is the same.
    mixed = len({gpu.model for gpu in ordered}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    if mixed:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # torch is to see all of them
    if torch.cuda.is_available():
        torch.cuda.init()  # else a driver that is too old for this torch would fail every trial by itself
        if mixed:
            order = [torch.cuda.get_device_properties(number).uuid for number in range(torch.cuda.device_count())]
            ordered = in_order(ordered, [f"GPU-{uuid}" for uuid in order])
    return gpus.visible(ordered, given).devices


def in_order(listed: Sequence[gpus.Gpu], uuids: Sequence[str]) -> list[gpus.Gpu]:
    """GPUs in the order of their UUIDs, then those whose UUID is not there: in MIG mode CUDA tells a slice's."""
    return sorted(listed, key=lambda gpu: uuids.index(gpu.uuid) if gpu.uuid in uuids else len(uuids))


def _asked_of_torch() -> dict[str, str]:
    """Without nvidia-smi: AMD's GPUs, or a container without the driver's tools."""
    import torch

    count = torch.cuda.device_count()
    hidden = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
    names = [name.strip() for name in os.environ.get(hidden, "").split(",") if name.strip()]
    names = names[:count] if names else [str(number) for number in range(count)]
    locks = {}
    for number, name in enumerate(names):
        uuid = getattr(torch.cuda.get_device_properties(number), "uuid", name)
        locks[name] = name if name.startswith("MIG") else f"GPU-{uuid}"
    return locks


def count_gpus(listed: Sequence[gpus.Gpu] | None) -> int:
    """How many GPUs and MIG slices runs can have, at least 1, as far as that is known without torch and its driver."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return max(1, len(gpus.visible(listed, given).devices))
    # Without nvidia-smi device files count, of which CUDA_VISIBLE_DEVICES may leave fewer.
    files = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev/dri").glob("renderD*")]
    return max(1, len(files) if given is None else min(len(files), len(given.split(","))))
