"""Private names of Python, torch and W&B: that each is there, and does what it is taken for."""

import ast
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import start
from torch import nn

from launcher.core import compat


@pytest.mark.parametrize("name", compat.OF_TORCH)
def test_every_name_of_torch_is_there(name):
    assert getattr(compat, name) is not None


def test_another_name_is_none_of_them():
    with pytest.raises(AttributeError, match="no attribute tree_of_life"):
        _ = compat.tree_of_life


def test_torch_is_imported_only_for_its_names():
    code = "import sys; from launcher.core import compat; assert 'torch' not in sys.modules; compat.foreach_norm"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' in sys.modules"], check=True, timeout=60)


def test_lists_of_tensors_are_computed_at_once():
    numbers = [torch.tensor([3.0, -4.0]), torch.tensor([1.0])]
    assert [norm.item() for norm in compat.foreach_norm(numbers)] == [5.0, 1.0]
    doubled = compat.foreach_mul(numbers, 2)
    compat.foreach_add_(doubled, numbers, alpha=-1)
    assert all(map(torch.equal, doubled, numbers))
    compat.foreach_sign_(doubled)
    compat.foreach_mul_(doubled, 7)
    assert [one.tolist() for one in doubled] == [[7, -7], [7]]
    compat.foreach_lerp_(doubled, numbers, 0.25)
    assert [one.tolist() for one in doubled] == [[6, -6.25], [5.5]]


def test_a_backward_without_its_checks():
    plain, bare = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    shares = torch.tensor([0.5, 0.25])
    (plain**2).backward(shares)
    compat.engine_run_backward((bare**2,), (shares,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    assert torch.equal(bare.grad, plain.grad)


def test_a_batch_is_a_tree():
    batch = {"a": [torch.zeros(2), "text"], "b": (torch.ones(3),)}
    assert [getattr(leaf, "shape", leaf) for leaf in compat.tree_leaves(batch)] == [(2,), "text", (3,)]
    assert compat.tree_map_only(torch.Tensor, len, batch) == {"a": [2, "text"], "b": (3,)}


def test_a_step_is_traced_without_memory():
    with compat.FakeTensorMode() as fake, compat.FakeCopyMode(fake):
        assert nn.Linear(10**6, 10**6)(torch.empty(3, 10**6)).shape == (3, 10**6)
    seen = []

    class Mode(compat.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        torch.zeros(2) + 1
    assert torch.ops.aten.add.Tensor in seen


def test_recomputed_modules_keep_their_names():
    inner = nn.Linear(2, 3)
    wrapped = nn.Sequential(compat.checkpoint_wrapper(inner))
    assert wrapped.state_dict().keys() == nn.Sequential(inner).state_dict().keys()


def test_the_tensors_of_a_module_are_put_in_place():
    norm = nn.BatchNorm1d(2)
    parameters, buffers = compat.own_tensors(norm)
    parameters["weight"], buffers["running_mean"] = nn.Parameter(torch.zeros(2)), torch.full((2,), 9.0)
    assert norm.weight.tolist() == [0, 0] and norm.running_mean.tolist() == [9, 9]


def test_hooks_of_an_optimizer_are_seen():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert not compat.has_step_hooks(optimizer)
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        hook = register(lambda *_: None)
        assert compat.has_step_hooks(optimizer)
        hook.remove()


@pytest.mark.parametrize("counted", [True, False])
def test_a_schedule_knows_of_a_counted_step(counted, recwarn):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    if counted:
        compat.count_step(optimizer)
    schedule.step()
    assert [str(one.message)[:26] for one in recwarn] == ([] if counted else ["Detected call of `lr_sched"])


def _group():
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    compat.set_group_timeout(timedelta(seconds=77))
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=77)
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    for _ in range(12):  # it measures some of the first, and then one in a hundred
        model(torch.ones(1, 2)).sum().backward()
    assert {"avg_backward_comm_time", "avg_backward_compute_comm_overlap_time", "avg_forward_compute_time",
            "avg_backward_compute_time"} <= compat.ddp_timings(model).keys()  # fmt: skip
    dist.destroy_process_group()


def test_a_group_takes_another_timeout_and_ddp_measures(tmp_path):
    start(_group, (), tmp_path, 2).ok()


def test_exit_functions_run():
    code = (
        "import atexit, os; from launcher.core import compat\natexit.register(print, 'goodbye', flush=True)\n"
        "compat.run_exit_functions(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "goodbye\n", done.stderr


SERVER = """
import multiprocessing, os
from multiprocessing import forkserver, resource_tracker
from launcher.core import compat
compat.stop_fork_server()  # where there is none
if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    process.start()
    process.join()
    pids = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
    compat.stop_fork_server()
    print(*pids)
"""


def test_the_fork_server_and_its_tracker_end(tmp_path):
    (tmp_path / "own.py").write_text(SERVER)
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


STARTED = """
import json, os, signal, sys
from launcher.core import compat
pids = []
compat.on_wandb_core(lambda service: pids.append(service.pid))
import wandb
run = wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
commands = [open(f"/proc/{pid}/cmdline").read() for pid in pids]
run.finish()
assert len(pids) == 1 and "wandb-core" in commands[0], (pids, commands)
"""


def test_wandb_starts_its_service_by_subprocess(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_wandb_has_the_settings_that_it_may_drop():
    import wandb

    assert set(compat.wandb_settings(1)) <= set(wandb.Settings.model_fields)


DOCUMENTED = {"os._exit", "sys._current_frames"}


def _private_names(file):
    """Private names of Python and torch that a file imports, or takes from a module."""
    tree, outside = ast.parse(file.read_text()), {"torch", *sys.stdlib_module_names}
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module.partition(".")[0] in outside:
                modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            names = names if names[0].partition(".")[0] in modules else []
        else:
            continue
        for name in names:
            if re.fullmatch(r"[\w.]*\._[a-z]\w*", name) and (name.partition(".")[0] in {*outside, *modules}):
                yield name


def test_no_other_file_takes_a_private_name_of_python_or_torch():
    package = Path(compat.__file__).parents[1]
    found = {
        f"{file.relative_to(package)}: {name}"
        for file in package.rglob("*.py")
        if file.name != "compat.py"
        for name in _private_names(file)
        if name not in DOCUMENTED and not name.startswith("hydra.")
    }
    assert found == set()
