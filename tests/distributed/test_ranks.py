"""Which of its processes a process is."""

import pytest

from launcher.core.errors import ConfigError
from launcher.distributed.ranks import Ranks, find_ranks, is_launcher

FOUR = "accelerate launch --num_processes 4 x.py"


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/env/bin/python /env/bin/torchrun --nproc_per_node 2 launcher/train.py", True),
        ("python -m torch.distributed.run --nnodes 2 launcher/train.py", True),
        ("python -u -m torch.distributed.launch launcher/train.py", True),
        ("/env/bin/python3.12 /env/bin/accelerate launch launcher/train.py", True),
        ("/env/bin/python /env/bin/accelerate-launch launcher/train.py", True),
        ("python -m accelerate.commands.launch launcher/train.py", True),
        *((words, False) for words in (
            "-bash", "sh -c python launcher/train.py", "make train", "tmux new-session -d", "SCREEN -S train",
            "/usr/sbin/cron -f", "sshd: me@notty", "/usr/lib/systemd/systemd --user", "slurmstepd: [12.0]", "",
            "python sweep_of_mine.py", "python -m pytest", "timeout 1h python launcher/train.py",
            "bash /home/me/torchrun.sh", "python train.py --with accelerate",
        )),
    ],
)  # fmt: skip
def test_which_parents_are_launchers(command, is_one):
    assert is_launcher(command.split()) == is_one


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1, 0, 1)),
        ({"RANK": "0"}, Ranks(0, 1, 0, 1)),  # says of a process alone what is so
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks(1, 2, 1, 2)),  # of one machine
        ({"OMPI_COMM_WORLD_SIZE": "1"}, Ranks(0, 1, 0, 1)),
    ],
)
def test_ranks_are_read_from_the_environment(environment, expected):
    assert find_ranks({**environment, "MASTER_ADDR": "n1", "MASTER_PORT": "2"}) == expected


@pytest.mark.parametrize(
    ("environment", "parent", "said"),
    [
        ({"RANK": "two"}, "", "RANK=two in the environment: must be a whole number"),
        ({"RANK": "1"}, "", "RANK=1 in the environment, and no WORLD_SIZE: left over from another launch"),
        ({"PMI_SIZE": "4"}, "", "torchrun --nproc_per_node 4"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "", "RANK=2 is not one of 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "", "no MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, FOUR, "4 processes were asked for and 2"),
        ({"MASTER_ADDR": "n1", "ACCELERATE_MIXED_PRECISION": "no"}, FOUR, "add --mu"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(environment, parent, said):
    with pytest.raises(ConfigError) as refused:
        find_ranks(environment, parent.split())
    assert said in str(refused.value)
