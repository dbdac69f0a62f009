"""Private names of torch: that each is there, and does what it is taken for."""

import ast
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import start
from torch import nn

from launcher.core import compat


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
    dist.destroy_process_group()


def test_a_group_takes_another_timeout(tmp_path):
    start(_group, (), tmp_path, 2).ok()


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
        if file.name not in ("compat.py", "compat_python.py")
        for name in _private_names(file)
        if name not in DOCUMENTED and not name.startswith("hydra.")
    }
    assert found == set()
