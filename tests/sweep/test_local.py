import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port
from sweeps import all_are_refused, end, start, summary, trials, weights

from launcher.sweep.comparison import read_sweep

WRONG = {
    "unknown override": (["optimizer.lrr=0.1,0.2"], ["optimizer.lrr", "optimizer.lr"]),
    "unknown option": (["optimizer=adam,sgdd"], ["trial 1", "optimizer=sgdd", "Did you mean sgd"]),
    "wrong type": (["epochs=1,many"], ["trial 1", "epochs=many", "whole number"]),
    "wrong value": (["optimizer.lr=0.1,-0.1", "seed=0,1"], ["trial 2", "optimizer.lr=-0.1", "greater than 0"]),
    "empty list": (["seed=range(0,0)"], ["seed=range(0,0)", "nothing"]),
    "too many devices": (["seed=0,1", "hydra.launcher.devices_per_run=99"], ["devices_per_run=99", "trial 0", "cores"]),
    "the most first": (
        ["seed=0,1", "hydra.launcher.devices_per_run=4-1"],
        ["devices_per_run=4-1", "a range such as 1-4"],
    ),
    "no limit": (["seed=0,1", "hydra.launcher.max_points=null"], ["hydra.launcher.max_points=null", "whole number"]),
    "a limit in words": (["seed=0,1", "hydra.launcher.max_points=many"], ["max_points=many", "whole number"]),
    "batches of none": (["seed=0,1", "hydra.sweeper.max_batch_size=0"], ["max_batch_size=0", "whole number"]),
    "too many trials": (["seed=range(100)", "epochs=range(1,1001)"], ["100,000", "hydra.launcher.max_points"]),
    "the same twice": (["seed=0,0"], ["trial 1", "same as trial 0"]),
    "no fp16 on a CPU": (["mixed_precision=no,fp16", "device=cpu"], ["trial 1", "fp16", "bf16"]),
    "launcher's own": (["seed=0,1", "hydra.launcher.parallel=many"], ["hydra.launcher.parallel=many", "whole number"]),
    "unknown of the launcher": (["seed=0,1", "hydra.launcher.device=1"], ["hydra.launcher.device"]),
    "of other programs": (["seed=0,1", "hydra/launcher=device_pool"], ["device_pool", "of your own", "launcher=local"]),
    "a file in the way": (["seed=0,1", "hydra.sweep.dir=own.py/sweep"], ["own.py", "file"]),
    "no place": (["seed=0,1", "hydra.sweep.dir=/proc/none/sweep"], ["hydra.sweep.dir=/proc/none/sweep", "another"]),
}


def test_wrong_input_is_refused_before_anything_starts(place):
    before = sorted(path.name for path in place.iterdir())
    running = {what: start([*words, "wandb.mode=disabled"], place) for what, (words, _) in WRONG.items()}
    all_are_refused(running, WRONG)
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.soak
def test_trials_of_every_batch_have_names_of_their_own(place):
    """What changes no result is in them where it is swept; hydra.sweep.subdir may refer to what Hydra knows."""
    name = "hydra.sweep.subdir='${hydra.runtime.choices.model}${seed}/${hydra.job.override_dirname}'"
    words = ["log_every=5,10", "seed=0,1", "epochs=1", "hydra.sweeper.max_batch_size=2", "hydra.sweep.dir=grid", name]
    status, out, err = end(start(words, place))
    assert status == 0, (out, err)
    found = {str(path.parent.relative_to(place / "grid")) for path in place.glob("grid/*/*/summary.json")}
    assert found == {f"mlp{seed}/epochs=1,log_every={every},seed={seed}" for seed in (0, 1) for every in (5, 10)}


@pytest.mark.soak
def test_a_trial_is_what_the_same_command_gives_alone(place):
    """Bit for bit; and the command is the one that the comparison names."""
    words = ["optimizer=sgd,adam", "epochs=1", "model.hidden=[8]", "wandb.mode=disabled", "hydra.sweep.dir=grid"]
    status, out, err = end(start(words, place))
    assert status == 0, err
    best = read_sweep(place / "grid", None, None).measured[0]
    command = shlex.split(next(line for line in out.splitlines() if line.strip().startswith("python ")))
    subprocess.run(
        [sys.executable, *command[1:], "hydra.run.dir=alone"], cwd=place, check=True, capture_output=True, timeout=120
    )
    assert weights(place / "alone") == weights(best.path)
    assert (place / "alone/metrics.jsonl").read_text() == (best.path / "metrics.jsonl").read_text()
    for name in (".hydra/config.yaml", "train.log", "report.html", "curves.png"):
        assert (best.path / name).stat().st_size > 0


LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master-port"],
}


@pytest.mark.soak
@pytest.mark.parametrize("how", LAUNCHERS)
def test_two_ranks_a_trial_under_every_launcher(how, place):
    words = list(LAUNCHERS[how])
    if how != "python":
        words = [shutil.which(words[0], path=str(Path(sys.executable).parent)), *words[1:], str(free_port())]
    own = ["hydra.launcher.devices_per_run=2"] if how == "python" else []
    sweep = ["mixed_precision=no,bf16", "seed=0,1", "epochs=1", "model.hidden=[8]", "wandb.mode=disabled"]
    status, out, err = end(start([*sweep, "hydra.sweep.dir=grid", *own], place, words, ACCELERATE_USE_CPU="1"), 240)
    assert status == 0, (out, err)
    found = trials(place / "grid")
    assert len(found) == 4 and all(summary(path)["world_size"] == 2 for path in found.values())
    assert len({weights(path) for path in found.values()}) == 4
    assert out.count("4 trials to compose") == 1
