"""The commands for clusters that README.md and slurm/README.md give, on a real SLURM of nodes with 8 pretended GPUs."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from processes import REPOSITORY
from slurm_cluster import Cluster, missing
from test_docs import blocks

SHORT = "max_steps=2 wandb.mode=disabled device=cpu threads=1"  # the GPUs are pretended
WORLDS = {  # devices that each command should train on, by what it says
    "sbatch slurm/train.sbatch optimizer=sgd": 8,
    "sbatch --nodes=2 --gpus-per-node=8 slurm/train.sbatch experiment=fashion_mnist": 16,
    "sbatch --oversubscribe --gpus-per-node=1 --cpus-per-gpu=8 --mem=32G slurm/train.sbatch optimizer=sgd": 1,
}
# What differs in where and for how long it runs is taken by SLURM, and not run again on eight processes.
ACCEPTED = "sbatch --partition=gpu --account=lab --time=12:00:00 slurm/train.sbatch optimizer=sgd epochs=30"


@pytest.fixture(scope="module")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    with Cluster(cpus=64, gpus=8) as found:
        yield found


@pytest.fixture
def run(cluster, tmp_path):
    """A directory that looks like the repository's root, and what runs a command line there as on a login node."""
    for name in ("launcher", "slurm", "conf"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "1"}
    return lambda command, **more: cluster.run(
        "bash", "-euo", "pipefail", "-c", command, env=environment, cwd=tmp_path, timeout=300, **more
    )


def lines(page):
    return [line.strip() for block in blocks(REPOSITORY / page) for line in block]


@pytest.mark.soak
@pytest.mark.parametrize("command", WORLDS)
def test_a_job(command, cluster, run, tmp_path):
    assert command in lines("slurm/README.md")
    if "fashion_mnist" in command and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs Debian's dataset-fashion-mnist")
    printed = run(f"{command} {SHORT}").stdout
    job = re.fullmatch(r"Submitted batch job (\d+)\n", printed)[1]
    assert cluster.wait(job, timeout=300)["JobState"] == "COMPLETED", (tmp_path / f"slurm-{job}.out").read_text()
    summary = json.loads((tmp_path / f"outputs/slurm/{job}/summary.json").read_text())
    assert (summary["status"], summary["step"], summary["world_size"]) == ("finished", 2, WORLDS[command])


@pytest.mark.soak
def test_a_job_that_asks_for_a_partition_and_a_time(cluster, run):
    assert ACCEPTED in lines("slurm/README.md")
    printed = run(ACCEPTED.replace("sbatch", "sbatch --hold", 1)).stdout
    job = re.fullmatch(r"Submitted batch job (\d+)\n", printed)[1]
    record = cluster.wait(job, "PENDING")
    run(f"scancel {job}")
    assert (record["Partition"], record["TimeLimit"], record["Account"]) == ("gpu", "12:00:00", "lab")
    # All of one node, as the job before has it
    assert (record["NumNodes"], record["OverSubscribe"]) == ("1-1", "NO")


@pytest.mark.soak
def test_every_job_of_the_pages_is_here():
    given = [line for page in ("README.md", "slurm/README.md") for line in lines(page) if line.startswith("sbatch ")]
    assert set(given) == {*WORLDS, ACCEPTED}


@pytest.mark.soak
def test_within_an_allocation(run, tmp_path):
    """salloc and what follows it in the page's blocks: srun alone, and accelerate launch on each node."""
    page = lines("slurm/README.md")
    (allocate,) = (line for line in page if line.startswith("salloc "))
    (alone,) = (line for line in page if line.startswith("srun ") and "python launcher/train.py" in line)
    (address,) = (line for line in page if line.startswith("address="))
    (each,) = (line for line in page if "accelerate launch" in line)
    address = address.replace("$(scontrol show hostnames | head -1)", "127.0.0.1")  # nodes' names do not resolve here
    each = each.replace("optimizer=sgd", f"optimizer=sgd {SHORT} hydra.run.dir=each")
    (tmp_path / "job.sh").write_text(f"set -e\n{alone} {SHORT} hydra.run.dir=alone\n{address}\n{each}\n")
    run(f"{allocate} bash job.sh")
    worlds = [json.loads((tmp_path / name / "summary.json").read_text())["world_size"] for name in ("alone", "each")]
    assert worlds == [4, 4]


@pytest.mark.soak
def test_the_doctor(run):
    """It comes on all ranks, and names what is wrong here: the GPUs are not ones."""
    for page, ranks in (("README.md", 1), ("slurm/README.md", 16)):
        (command,) = (
            line for line in lines(page) if line.startswith("srun ") and line.endswith("launcher doctor outputs")
        )
        done = run(command, check=False)
        said = done.stdout + done.stderr
        assert re.search(rf"^ranks +{ranks} on", said, re.MULTILINE), said
        if "gpus" in command:
            assert done.returncode != 0 and "8 GPUs were given, and torch sees none" in said, said
        else:
            assert done.returncode == 0, said


@pytest.mark.soak
def test_a_sweep_and_what_follows(cluster, run, tmp_path):
    page = lines("slurm/README.md")
    (submit,) = (line for line in page if "hydra/launcher=slurm optimizer=sgd,adam" in line)
    assert "cluster.partition=gpu cluster.time=90" in submit
    said = run(f"{submit} {SHORT}").stdout
    array = re.search(r"(?:array|job) (\d+)", said)[1]
    assert [record["JobState"] for record in cluster.wait_array(array, timeout=300)] == ["COMPLETED"] * 4
    (sweep,) = (tmp_path / "outputs/grids").glob("*/*")
    assert run(f"launcher compare {sweep}").stdout.count("finished") >= 1
    assert "launcher sync outputs" in page and "launcher compare outputs/grids/..." in page
    run("launcher sync outputs --dry-run")
