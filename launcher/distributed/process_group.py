"""Which rank am I: the processes of a run, checked against what was asked for, and agreement among them."""

import os
import pickle
import socket
import time
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.config import accelerate_flags
from launcher.config.schema import FP16_ON_CPU
from launcher.core.errors import ConfigError, Explained
from launcher.distributed import gpus, slurm

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

parent_command = accelerate_flags.parent_command

LAUNCHERS = {
    "accelerate", "accelerate-launch", "accelerate.commands.launch",
    "torchrun", "torch.distributed.run", "torch.distributed.launch",
}  # fmt: skip


# Seconds by which the process group waits longer than `timeout`: by then the watch has ended a run that hangs, with
# names and places, and a checkpoint that was being written is on the disk. Its own timeout only raises or aborts.
LONGER = 3600.0
# NCCL's threads end the process on an error, on a timeout and where they are stuck themselves, whatever it is writing
# (ProcessGroupNCCL.hpp: ErrorHandlingMode, of which 0 leaves it be). The watch does it, and waits for the checkpoint.
NO_ABORT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}

T = TypeVar("T")
_told: "list[_Told]" = []  # by which `told_by_rank_0` tells, once it has

ALONE = {
    "RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_RANK": 0,
    "LOCAL_WORLD_SIZE": 1,
}  # what these say of a process without others
# Accelerate reads these, too, and would wait for processes that nobody has started.
OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these cuBLAS gives the same bits again: torch refuses its products with any other (aten/src/ATen/Context.cpp,
# checkCuBLASConfigDeterministic). The first, of 32 MiB, is what torch takes on Hopper anyway.
FIXED_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of its run.

    Attributes:
        rank: 0 to world_size - 1; rank 0 speaks and writes.
        world_size: Processes in all, one per device.
        local_rank: 0 to local_world_size - 1, among those of this machine.
        local_world_size: Processes on this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def join() -> Ranks:
    """This process among those of its launch: by python alone, torchrun, `accelerate launch` or srun.

    Inside a SLURM step (`srun python launcher/train.py`) torch.distributed is told its ranks.

    Raises:
        ConfigError: As find_ranks does.
    """
    os.environ.update(slurm.ranks(os.environ) or {})
    return find_ranks(os.environ, parent_command())


def find_ranks(environment: Mapping[str, str], parent_command: Sequence[str] = ()) -> Ranks:
    """Read the rank from the environment, and check that what came up is what was asked for.

    Args:
        environment: Of the process; torchrun and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK.
        parent_command: Command line of the parent process, which says how many processes were asked for.

    Raises:
        ConfigError: Fewer or more processes came up than were asked for, or the variables contradict each other, or
            are left over from another launch.
    """
    asked = accelerate_flags.asked_processes(parent_command)
    numbers = {}
    for name in (*ALONE, *OF_MPI):
        text = environment.get(name, "").strip()
        if text and not text.isdigit():
            raise ConfigError(f"{name}={text} in the environment: must be a whole number.")
        if text:
            numbers[name] = int(text)
    if "RANK" not in numbers or "WORLD_SIZE" not in numbers:
        # `accelerate launch --num_processes 2` without --multi_gpu, and with --cpu, sets an address for two
        # processes and then starts one.
        if "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment:
            count = asked or 2
            raise ConfigError(
                f"accelerate launch was asked for {f'{asked} processes' if asked else 'several processes'} and started "
                f"one. On GPUs add --multi_gpu; on a machine without GPUs use\n"
                f"  ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes {count} launcher/train.py ...\n"
                f"or\n  torchrun --nproc_per_node {count} launcher/train.py ..."
            )
        if asked is not None and asked > 1:
            raise ConfigError(f"{asked} processes were asked for and one came up alone: start it with torchrun.")
        for name, value in numbers.items():
            if name in ALONE and value != ALONE[name]:
                there = " ".join(n for n in numbers if n in ALONE)
                missing = " and ".join(n for n in ("RANK", "WORLD_SIZE") if n not in numbers)
                raise ConfigError(
                    f"{name}={value} in the environment, and no {missing}: left over from another launch? To run "
                    f"alone: unset {there}. torchrun --nproc_per_node N sets all of them."
                )
            if name in OF_MPI and value > 1:
                raise ConfigError(
                    f"{name}={value} in the environment: mpirun is no launcher of these processes. Start them with "
                    f"torchrun --nproc_per_node {value} launcher/train.py ..., or srun. Where it is left over from "
                    f"another launch: unset {name}."
                )
        return Ranks(0, 1, 0, 1)
    rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= world:
        raise ConfigError(f"RANK={rank} is not one of 0 to {world - 1} (WORLD_SIZE={world}).")
    if asked is not None and asked != world:
        raise ConfigError(
            f"{asked} processes were asked for and {world} came up: accelerate's saved config overrides "
            "--num_processes. Correct it with `accelerate config`, or start with torchrun."
        )
    missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name))
    if world > 1 and missing:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={world} in the environment, and no {missing}, where the processes meet. "
            "torchrun sets all of them. Where they are left over from another launch: unset RANK WORLD_SIZE LOCAL_RANK."
        )
    return Ranks(rank, world, numbers.get("LOCAL_RANK", rank), numbers.get("LOCAL_WORLD_SIZE", world))


def conducts(ranks: Ranks) -> bool:
    """Whether a sweep is for this process to conduct: rank 0 does, and gives each trial processes of its own."""
    if ranks.rank > 0 and not is_launcher(parent_command()) and not slurm.job_name(os.environ):
        print(f"rank {ranks.rank} of {ranks.world_size} has nothing to do: rank 0 conducts the sweep.")
    return ranks.rank == 0


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line is one of torchrun or `accelerate launch`."""
    words = iter(command[1:] if command and Path(command[0]).name.startswith("python") else command)
    for word in words:
        if word in ("-X", "-W"):  # of Python, with a value
            next(words, None)
        elif not word.startswith("-"):
            return Path(word).name in LAUNCHERS
    return False


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(device: str, mixed_precision: str, ranks: Ranks) -> bool:
    """Decide between GPUs and the CPU without starting a device.

    Returns:
        True for the CPU.

    Raises:
        ConfigError: More processes than GPUs, no GPU that they could share, or fp16 on a CPU.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # count GPUs without a CUDA context
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a peer that ends is told by us, in a line
    import torch

    on_cpu = device == "cpu" or accelerate_flags.asks_for_cpu(os.environ) or not torch.cuda.is_available()
    if on_cpu and mixed_precision == "fp16":
        raise ConfigError(FP16_ON_CPU)
    check_share(device, ranks, 0 if on_cpu else torch.cuda.device_count())
    return on_cpu


def check_share(device: str, ranks: Ranks, count: int) -> None:
    """Check that each process has a GPU of its own, or may share one.

    Args:
        device: The setting.
        ranks: Of this launch.
        count: GPUs that this process sees and uses; 0: the run is on the CPU.

    Raises:
        ConfigError: There are too few.
    """
    if device == "shared" and not count:
        raise ConfigError(
            "device=shared: torch sees no GPU here that processes could share, or the CPU was asked for "
            "(ACCELERATE_USE_CPU). Use device=auto, or device=cpu."
        )
    few = gpus.index_of_rank(count, ranks.local_rank, ranks.local_world_size) is None
    if device != "shared" and count and few:
        raise ConfigError(
            f"{ranks.local_world_size} processes on this machine, which has {count} GPUs: start one process per GPU, "
            "use device=cpu, or, to try several processes on a GPU, device=shared."
        )


def gpu_of(ranks: Ranks, count: int) -> int:
    """The number of the GPU that a process takes: its own, or with device=shared the next in turn.

    Args:
        ranks: Of this launch.
        count: GPUs that this process sees, at least 1; 1 also where each process is shown another one.
    """
    return ranks.local_rank % count


def compare_devices(device: str, ranks: Ranks, on_cpu: bool, timeout: float) -> None:
    """Check that all ranks are on devices of one kind, and each on its own, before they meet in a collective.

    A rank that sees one GPU where its machine has several ranks cannot tell whether that is also the others': NCCL
    would hang or fail on one that two ranks share.

    Args:
        device: The setting; `shared` lets them share.
        ranks: What find_ranks found.
        on_cpu: What choose_device chose.
        timeout: Seconds to wait for every rank.

    Raises:
        ConfigError: They are not, on every rank.
    """
    import torch

    fact: dict[str, str | None] = {"host": socket.gethostname(), "kind": "cpu" if on_cpu else "gpu", "gpu": None}
    if not on_cpu and device != "shared" and torch.cuda.device_count() < ranks.local_world_size:
        fact["gpu"] = gpus.identity(0)
    judged_by_rank_0(fact, gpus.check_devices, ranks, timeout)


def choose_workspace(environment: MutableMapping[str, str], deterministic: bool, on_cpu: bool) -> None:
    """Fix the workspace of cuBLAS, which it reads when CUDA starts, where the same bits are asked for.

    Args:
        environment: Of the process; changed.
        deterministic: The setting.
        on_cpu: What choose_device chose: no product of a CPU's looks at it.

    Raises:
        ConfigError: The environment asks for a workspace with which the bits may change.
    """
    if deterministic and environment.setdefault(WORKSPACE, FIXED_WORKSPACES[0]) not in FIXED_WORKSPACES and not on_cpu:
        raise ConfigError(
            f"{WORKSPACE}={environment[WORKSPACE]} in the environment: with deterministic=true it must be "
            f"{' or '.join(FIXED_WORKSPACES)}. Unset it, or say deterministic=false."
        )


def check_compression(strategy: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuse gradients in bf16 where torch is built without CUDA, as DDP does later and on any device.

    See `_check_comm_hook` in torch/nn/parallel/distributed.py.

    Args:
        strategy: Settings of conf/strategy.
        ranks: What find_ranks found: one process sums nothing up.

    Raises:
        ConfigError: This torch is built without CUDA.
    """
    import torch

    if strategy.get("compress") == "bf16" and ranks.world_size > 1 and not (torch.version.cuda or torch.version.hip):
        raise ConfigError(
            f"strategy.compress=bf16: torch {torch.__version__} is built without CUDA, and its DDP refuses that. Use "
            "fp16 or null, or a torch with CUDA."
        )


def choose_numerics(deterministic: bool, float32_matmul_precision: str) -> None:
    """Choose among torch's kernels, for the rest of the process.

    Args:
        deterministic: Only kernels that give the same bits again; torch raises where an operation has none on its
            device (errors.explained_kernels). Attention and embeddings have them: cuDNN's attention is left out, the
            backwards of flash and memory-efficient attention and of nn.Embedding take another way
            (transformers/cuda/sdp_utils.cpp, check_cudnn_deterministic; attention_backward.cu). With warn_only the
            attention would stay as it is.
        float32_matmul_precision: highest, high or medium, as torch.set_float32_matmul_precision takes it; anything but
            highest lets convolutions and recurrent layers use TF32 too, which torch would by itself.
    """
    import torch

    # The same as use_deterministic_algorithms(), which imports torch's compiler (1.2 s) to set an option of it. A run
    # that compiles its model asks for that: Trainer.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # Else each torch.empty is filled with NaN: a kernel more for each on a GPU, and no bit differs by it, but for code
    # that reads what nobody wrote. A step on a CPU took 1.00 to 1.01 times as long with it (mlp, cnn, transformer).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    with warnings.catch_warnings():  # torch 2.9 told of newer names, which are refused where anyone reads the older
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.set_float32_matmul_precision(float32_matmul_precision)
        torch.backends.cudnn.allow_tf32 = float32_matmul_precision != "highest"


def choose_threads(threads: int | str, ranks: Ranks, useful: Callable[[], int | None] = lambda: None) -> int:
    """CPU threads of this process: a number, or what `auto` means here.

    That is OMP_NUM_THREADS where a person has set it, else this process's share of the cores of the machine or the
    SLURM task, as far as they are of use.

    Args:
        threads: The setting.
        ranks: Of this launch.
        useful: Tells how many threads help, where that is known; asked for where it matters.
    """
    if threads != "auto":
        return int(threads)
    if (exported := exported_threads()) is not None:
        return exported
    share = share_of_cores(ranks.local_world_size)
    return min(share, useful() or share) if share > 1 else share


def share_of_cores(processes: int | None = None) -> int:
    """A process's share of the cores of the machine or of the SLURM task, at least 1.

    Args:
        processes: Of this run on this machine; None: as the environment says.
    """
    processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    given = slurm.cores_of_task(os.environ, processes)  # and may bind it to them
    return max(1, cores() // processes if given is None else min(given, cores()))


def takes_all_cores() -> bool:
    """Whether the processes of this run on this machine train with all cores that they may use."""
    import torch

    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return not on_gpu and torch.get_num_threads() >= share_of_cores()


def exported_threads() -> int | None:
    """OMP_NUM_THREADS, unless it was a launcher that set it: torchrun and `accelerate launch` do where nobody has."""
    if is_launcher(command := parent_command()):
        if flag := accelerate_flags.asked_threads(command):
            return flag
        try:
            before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")  # as it was started with
        except OSError:
            return None
        if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in before):
            return None
    number = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested regions
    return int(number) if number.isdigit() and int(number) else None


def start(
    ranks: Ranks,
    on_cpu: bool,
    mixed_precision: str,
    threads: int | str,
    timeout: float,
    deterministic: bool,
    strategy: Mapping[str, Any],
    float32_matmul_precision: str,
    shared: bool = False,
) -> "Accelerator":
    """Bring up the devices and the process group.

    Args:
        ranks: What find_ranks found.
        on_cpu: What choose_device chose.
        mixed_precision: no, bf16 or fp16.
        threads: CPU threads of this process; auto shares the machine's cores among its processes.
        timeout: Seconds until a rank counts as hung (see watch.py); a collective of gloo fails an hour later.
        deterministic: As for choose_numerics.
        strategy: Settings of conf/strategy.
        float32_matmul_precision: As for choose_numerics.
        shared: Whether several processes may have one GPU (device=shared): NCCL refuses that, gloo takes it.

    Raises:
        ConfigError: The ranks did not find each other as one group, or as choose_workspace does.
    """
    choose_workspace(os.environ, deterministic, on_cpu)

    import torch
    from accelerate import Accelerator
    from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

    # Accelerate reads these again and would follow a saved config against ours.
    os.environ["ACCELERATE_USE_CPU"] = str(on_cpu).lower()
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed_precision
    accelerate_flags.leave_nothing()
    count = choose_threads(threads, ranks)
    os.environ["OMP_NUM_THREADS"] = str(count)
    hook = DDPCommunicationHookType(strategy.get("compress") or "no")
    arguments = {name: value for name, value in strategy.items() if name not in ("name", "compress")}
    if strategy.get("name") == "fsdp":  # launcher/training/sharded.py reads its options
        arguments = {}
    ddp = DistributedDataParallelKwargs(comm_hook=hook, **arguments)
    for name, value in NO_ABORT.items():
        os.environ.setdefault(name, value)
    # Before the group is made: that of NCCL then does without NVLS, which adds up in an order that changes (the
    # constructor in ProcessGroupNCCL.cpp).
    choose_numerics(deterministic, float32_matmul_precision)
    if ranks.world_size == 1:  # without LOCAL_RANK Accelerate makes no group, which nobody would leave
        for name in (*ALONE, *OF_MPI):  # RANK=0 and WORLD_SIZE=1 may stay: a second look finds the same
            if name not in ("RANK", "WORLD_SIZE") or not os.environ.get(name):
                os.environ.pop(name, None)
    else:
        os.environ |= {"LOCAL_RANK": str(ranks.local_rank), "LOCAL_WORLD_SIZE": str(ranks.local_world_size)}
        device = None if on_cpu else torch.device("cuda", gpu_of(ranks, torch.cuda.device_count()))
        if device is not None:  # Accelerate will choose the same
            torch.cuda.set_device(device)
        join_group(ranks, "gloo" if on_cpu or shared else "nccl", device, timeout)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision, kwargs_handlers=[ddp])
    if accelerator.num_processes != ranks.world_size:
        raise ConfigError(
            f"{ranks.world_size} processes were started, but each believes it is one of {accelerator.num_processes}. "
            "Start with torchrun --nproc_per_node, or on a machine without GPUs with ACCELERATE_USE_CPU=1."
        )
    if on_cpu:  # Accelerate says cpu:0 in a group, which Tensor.to takes for another device than cpu: it would copy
        accelerator.state.device = torch.device("cpu")
    take_own_index(accelerator)
    # After Accelerator(), which sets a number of its own; weights differ in bits between 1 and 2 threads.
    torch.set_num_threads(count)
    return accelerator


def take_own_index(accelerator: "Accelerator") -> None:
    """Let DDP have the GPU that the rank is on.

    Accelerate gives it the local rank for device_ids (`Accelerator.prepare_model`), which is another number where
    each rank is shown one GPU, and leads nowhere.
    """
    if accelerator.device.index is not None:
        accelerator.state.local_process_index = accelerator.device.index


def join_group(ranks: Ranks, backend: str, device: "torch.device | None", timeout: float) -> None:
    """Make the ranks a process group, which Accelerate then takes up: its own call (1.15) passes no device on.

    Args:
        ranks: More than one.
        backend: Of torch.distributed.
        device: That this rank uses; None for a CPU. NCCL connects at once where it is told one, and fails here where it
            cannot, in place of in some first collective; and a barrier is not left to guess a device.
        timeout: Seconds in which they meet; a collective of gloo fails an hour later.
    """
    import torch.distributed as dist

    _until_rank_0_listens(ranks)
    wait, store = timedelta(seconds=timeout), None
    if agent_serves_store() and not dist.is_initialized():
        # torchrun's store outlives a restart, and gloo would find the addresses of dead ranks in it (torch 2.14.1
        # with --max-restarts fails so, also in ten lines of plain PyTorch): each start gets a part of its own.
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = own_part("start", dist.TCPStore(*address, ranks.world_size, is_master=False, timeout=wait))
    alone = device if backend == "nccl" else None
    if not dist.is_initialized():  # by a module of a person's own
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=wait, device_id=alone
        )
    # Now that they have met. Before torch 2.14 the function is a private one.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timedelta(seconds=timeout + LONGER))


def sum_over_ranks(tensors: list["torch.Tensor"], world_size: int) -> list["torch.Tensor"]:
    """Sum each tensor over the ranks, in the order of the ranks: the same bits however the group cuts its work."""
    return sum_over_shards([tensor[None] for tensor in tensors], world_size) if world_size > 1 else tensors


def sum_over_shards(tensors: list["torch.Tensor"], world_size: int) -> list["torch.Tensor"]:
    """Sum each tensor [shards of this rank, ...] over the shards of all ranks, in their order.

    Every rank has equally many shards.
    """
    import torch
    import torch.distributed as dist

    summed = []
    for tensor in tensors:
        every = [tensor]
        if world_size > 1:
            tensor = tensor.contiguous()
            every = [torch.empty_like(tensor) for _ in range(world_size)]
            dist.all_gather(every, tensor)
        first, *others = torch.cat(every).unbind()
        for other in others:
            first = first + other
        summed.append(first)
    return summed


def told_by_rank_0(make: Callable[[], T], ranks: Ranks, timeout: float) -> T:
    """What rank 0 makes, on every rank, before they are a process group and touch a device. Anything that pickles.

    Args:
        make: Called on rank 0 alone.
        ranks: What find_ranks found.
        timeout: Seconds that the others wait for it.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: It failed on rank 0, which raises that itself.
    """
    if ranks.world_size == 1:
        return make()
    told = _telling(ranks, timeout)
    number = told.begin()
    if ranks.rank == 0:
        said: tuple[Exception | None, Any] = (Explained("rank 0 was stopped"), None)
        try:
            said = None, make()
            return said[1]
        except ConfigError as error:
            said = ConfigError(str(error)), None
            raise
        except Exception as error:
            said = Explained(f"rank 0 failed: {error}"), None
            raise
        finally:
            told.store.set(number, pickle.dumps(said))
            told.store.add("heard", 1)
    problem, thing = pickle.loads(told.store.get(number))
    told.store.add("heard", 1)
    if problem is not None:
        raise problem
    return thing


def judged_by_rank_0(fact: Any, judge: Callable[[list[Any]], T], ranks: Ranks, timeout: float) -> T:
    """What rank 0 makes of what every rank knows, on every rank, before they are a process group.

    Args:
        fact: Of this rank. Anything that pickles.
        judge: Called on rank 0 alone, with the facts of all ranks in their order.
        ranks: What find_ranks found.
        timeout: Seconds to wait for every rank.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: A rank did not come, or `judge` failed.
    """
    if ranks.world_size == 1:
        return judge([fact])
    told = _telling(ranks, timeout)
    keys = [f"fact {told.times}/{rank}" for rank in range(ranks.world_size)]
    told.store.set(keys[ranks.rank], pickle.dumps(fact))

    def make() -> T:
        try:
            told.store.wait(keys, timedelta(seconds=0.9 * timeout))  # while the others still wait for what it says
        except Exception as error:
            missing = [rank for rank, key in enumerate(keys) if not told.store.check([key])]
            raise Explained(f"ranks {missing} did not come within {0.9 * timeout:g} s") from error
        return judge([pickle.loads(known) for known in told.store.multi_get(keys)])

    return told_by_rank_0(make, ranks, timeout)


def _telling(ranks: Ranks, timeout: float) -> "_Told":
    if not _told:
        _told.append(_Told(ranks, timeout))
    return _told[0]


class _Told:
    """The store by which rank 0 tells the others, which the process group shares later.

    Args:
        ranks: What find_ranks found.
        timeout: Seconds that each waits for it.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        import torch.distributed as dist

        # With multi_tenant the process group, which is made later at the same address, finds this store and shares it.
        self.world_size, self.leads = ranks.world_size, ranks.rank == 0 and not agent_serves_store()
        address, wait = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=timeout)
        _until_rank_0_listens(ranks)
        store = dist.TCPStore(*address, self.world_size, self.leads, wait, wait_for_workers=False, multi_tenant=True)
        self.store, self.times = own_part("told", store), 0

    def begin(self) -> str:
        """Under which name the next thing is told."""
        self.times += 1
        return f"said {self.times}"

    def is_heard(self) -> bool:
        """Whether no rank needs this process any more to hear what was told."""
        return not self.leads or self.store.add("heard", 0) >= self.times * self.world_size


def agent_serves_store() -> bool:
    """Whether the store in which ranks meet is torchrun's own, which outlives a restart of its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_part(name: str, store: Any) -> Any:
    """The part of a store that belongs to this start of the processes.

    Elsewhere than in an agent's, each start has a new store; and agents that joined later count fewer restarts than
    those that they joined.
    """
    import torch.distributed as dist

    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if agent_serves_store() else "0"
    return dist.PrefixStore(f"{name}/{restarts}", store)


def _until_rank_0_listens(ranks: Ranks, seconds: float = 10) -> None:
    """Wait for rank 0's store to listen, but not for ever: torch's own wait, in which it fails, comes next.

    A store that is asked before it listens is asked again after 0.5 to 1.5 s, in which all ranks stand still.
    """
    deadline = time.monotonic() + seconds
    while ranks.rank and time.monotonic() < deadline:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1).close()
            return
        except OSError:
            time.sleep(0.01)


def until_heard(seconds: float = 30) -> None:
    """Let every rank hear what `told_by_rank_0` has to tell before this process ends, and with it the store.

    A rank that starts late would else wait for a store that is no longer there, for as long as a run's `timeout`.

    Args:
        seconds: How long to wait for ranks that may never come.
    """
    deadline = time.monotonic() + seconds
    while _told and not _told[0].is_heard() and time.monotonic() < deadline:
        time.sleep(0.05)


def from_rank_0(thing: Any, world_size: int) -> Any:
    """What rank 0 holds, on every rank. Anything that pickles."""
    if world_size == 1:
        return thing
    import torch.distributed as dist

    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def at_rank_0(thing: Any, world_size: int, rank: int) -> list[Any] | None:
    """What every rank holds, in the order of ranks, on rank 0; None elsewhere."""
    if world_size == 1:
        return [thing]
    import torch.distributed as dist

    things: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(thing, things, dst=0)
    return things
