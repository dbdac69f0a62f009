"""Which of the processes of a run this is, checked against what was asked for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.accelerate_flags import asked_number, parent_command
from launcher.core.errors import ConfigError
from launcher.distributed import slurm

LAUNCHERS = {
    "accelerate", "accelerate-launch", "accelerate.commands.launch",
    "torchrun", "torch.distributed.run", "torch.distributed.launch",
}  # fmt: skip
# What these say of a process without others.
ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
# Accelerate reads these, too, and would wait for processes that nobody has started.
OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of its run."""

    rank: int  # 0 to world_size - 1; rank 0 speaks and writes
    world_size: int  # processes in all, one per device
    local_rank: int  # 0 to local_world_size - 1, among those of this machine
    local_world_size: int


def join() -> Ranks:
    """This process among those of its launch: by python alone, torchrun, `accelerate launch` or srun.

    Inside a SLURM step (`srun python launcher/train.py`) torch.distributed is told its ranks. Raises as find_ranks.
    """
    os.environ.update(slurm.ranks(os.environ) or {})
    return find_ranks(os.environ, parent_command())


def find_ranks(environment: Mapping[str, str], command: Sequence[str] = ()) -> Ranks:
    """Read the rank from the environment, and check that what came up is what the parent's command line asked for.

    Raises:
        ConfigError: Fewer or more processes came up than were asked for, or the variables contradict each other, or
            are left over from another launch.
    """
    asked = asked_number(command, "num_processes")
    numbers = {}
    for name in (*ALONE, *OF_MPI):
        text = environment.get(name, "").strip()
        if text and not text.isdigit():
            raise ConfigError(f"{name}={text} in the environment: must be a whole number.")
        if text:
            numbers[name] = int(text)
    if "RANK" not in numbers or "WORLD_SIZE" not in numbers:
        _check_alone(environment, numbers, asked)
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


def _check_alone(environment: Mapping[str, str], numbers: Mapping[str, int], asked: int | None) -> None:
    """Check that a process without a rank was meant to be alone."""
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


def executes_sweep(ranks: Ranks) -> bool:
    """Whether this process is to execute a sweep: rank 0 does, and gives each trial processes of its own."""
    if ranks.rank > 0 and not is_launcher(parent_command()) and not slurm.job_name(os.environ):
        print(f"rank {ranks.rank} of {ranks.world_size} has nothing to do: rank 0 executes the sweep.")
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
