"""deterministic=true: what torch is asked for, that CUDA refuses nothing of the launcher then, and what is said."""

import itertools
import re
import subprocess
import sys

import pytest
import torch
from as_on_cuda import REFUSED, AsOnCuda
from combinations import FACTORS, Generator, Refusal, Runner
from kill_loop import OWN, newest, place
from processes import _command, start, summary, train
from safetensors.torch import load_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.distributed.numerics import choose_numerics, choose_workspace, in_any_order
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.language import LanguageSums
from launcher.metrics.multilabel import LabelSums
from launcher.metrics.regression import RegressionSums
from launcher.training import histograms

POOLING = OWN + (
    "class Net(torch.nn.Module):\n"
    "    def __init__(self, num_outputs):\n"
    "        super().__init__()\n"
    "        self.pool, self.head = torch.nn.AdaptiveAvgPool2d((2, 2)), torch.nn.Linear(4, num_outputs)\n"
    "    def forward(self, x):\n"
    "        return self.head(self.pool(x[:, None, None] * self.head.weight.sum()).flatten(1))\n"
)
WORDS = ["data._target_=own.load", "model._target_=own.Net", "threads=1", "max_steps=3", "hydra.run.dir=run"]


# What is asked for


@pytest.fixture
def torch_as_it_was():
    """What a test chooses for the whole process is gone when the test is."""
    cudnn, found = torch.backends.cudnn, torch.utils.deterministic
    mode, before = torch.get_deterministic_debug_mode(), (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    precision, fills = torch.get_float32_matmul_precision(), found.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(mode)
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(precision)
    found.fill_uninitialized_memory = fills


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_setting_means_all_of_torch_and_raises(deterministic, torch_as_it_was):
    choose_numerics(deterministic, "highest")
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "with which attention stays as it is"
    assert torch.backends.cudnn.deterministic is deterministic and torch.backends.cudnn.benchmark is not deterministic
    if deterministic:
        with pytest.raises(RuntimeError, match=r"put_ .*does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))  # which no device has
        assert not torch.empty(1 << 16).isnan().all(), "no fill of what is written anyway"


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_one_setting_rules_products_and_convolutions(precision, tf32, torch_as_it_was, recwarn):
    """By the names of before and after torch 2.9, which have to agree: a mixture raises where one of them is read."""
    for chosen in ("highest", "high", precision):
        choose_numerics(True, chosen)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is tf32 and torch.backends.cuda.matmul.allow_tf32 is tf32
    newer = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        assert [one.fp32_precision == "tf32" for one in newer] == [tf32] * 3
    assert not recwarn.list


def test_the_compiler_is_imported_only_where_it_is_used():
    """It costs 1.2 s, and a run without torch.compile has no use for it."""
    code = (
        "import sys; from launcher.distributed import numerics; import accelerate\n"
        "numerics.choose_numerics(True, 'highest')\n"
        "assert 'torch._inductor.config' not in sys.modules\n"
        "import torch\n"
        "torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())\n"  # as Trainer does
        "assert torch._inductor.config.deterministic\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_cublas_gets_a_workspace_before_cuda_starts():
    found = {}
    choose_workspace(found, True, False)
    assert found == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    for value in (":4096:8", ":16:8"):
        choose_workspace(found := {"CUBLAS_WORKSPACE_CONFIG": value}, True, False)
        assert found == {"CUBLAS_WORKSPACE_CONFIG": value}
    other = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}
    for deterministic, on_cpu in ((False, False), (True, True)):
        choose_workspace(dict(other), deterministic, on_cpu)
    choose_workspace(nothing := {}, False, False)
    assert not nothing
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8 .* Unset it, or say deterministic="):
        choose_workspace(dict(other), True, False)


# The list


def test_the_list_is_that_of_the_installed_torch():
    text = torch.use_deterministic_algorithms.__doc__
    listed = text.partition("operations will throw a")[2].partition("In addition, several operations fill")[0]
    documented = {name.rpartition(".")[2] for name in re.findall(r":(?:class|func):`(torch\.[\w.]+)`", listed)}
    known = {name for _, name in REFUSED.values()}
    assert len(documented) > 20, "the text is there"
    # resize_ of quantized tensors, of which a run has none, and MaxUnpool1d, which calls that of 2d
    assert documented - known == {"resize_", "MaxUnpool1d"}


def test_the_list_is_refused_in_the_forward_and_in_the_backward(torch_as_it_was):
    choose_numerics(True, "highest")
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    calls = {
        "adaptive_avg_pool2d": lambda: nn.functional.adaptive_avg_pool2d(images, 3).sum().backward(),
        "upsample_bilinear2d": lambda: nn.functional.interpolate(images, 9, mode="bilinear").sum().backward(),
        "reflection_pad2d": lambda: nn.functional.pad(images, (1, 1, 1, 1), "reflect").sum().backward(),
        "nll_loss2d": lambda: nn.functional.cross_entropy(images, torch.zeros(2, 8, 8).long()),
        "_histc": lambda: images.detach().histc(4),
        "_bincount": lambda: torch.zeros(3).long().bincount(torch.ones(3)),
        "median": lambda: images.detach().median(1),
    }
    for name, call in calls.items():
        with AsOnCuda(), pytest.raises(RuntimeError, match=f"^{name}.* does not have a deterministic implementation"):
            call()
        call()  # on a CPU
    with AsOnCuda():
        torch.zeros(3).long().bincount(), images.detach().median(), images.mean((2, 3)).sum().backward()
        torch.set_deterministic_debug_mode("default")
        for call in calls.values():
            call()


# What the launcher itself calls


def _cover(seed):
    """Combinations in which each value of each factor comes up at least once, as CUDA would take them."""
    generator = Generator(seed)
    waiting = {(factor, value) for factor, values in FACTORS.items() for value in values}
    waiting -= {("ranks", "3"), ("ranks", "4")}
    while waiting:
        best = max((generator.draw({"ranks": ["1", "2"]}) for _ in range(8)), key=lambda c: len(waiting & c.items()))
        yield best
        waiting -= best.items()
        generator.ran(best)


@pytest.mark.parametrize("most", [3, pytest.param(None, marks=pytest.mark.soak)])
def test_no_combination_of_settings_calls_what_cuda_refuses(most, tmp_path):
    """Models, losses, optimizers, schedules, augmentation, mixing, clipping, averages, DDP and fsdp: each value."""
    runner, ran = Runner(tmp_path, AsOnCuda), 0
    for number, combination in enumerate(itertools.islice(_cover(7), most)):
        try:
            runner.run(combination, tmp_path / f"run{number}", int(combination["ranks"]))
            ran += 1
        except Refusal as refusal:
            assert "deterministic" not in str(refusal)
    assert ran >= (8 if most is None else 1)


def _as_on_cuda(*arguments):
    with AsOnCuda():
        _command(*arguments)


def test_evaluations_call_nothing_that_cuda_refuses(tmp_path):
    """A run with metrics of torchmetrics and a table of predictions, and the commands that take it up."""
    words = ["model=cnn", "model.channels=[8]", "model.dense=8", "threads=1", "max_steps=2", "hydra.run.dir=run",
             "metrics=[AUROC,CohenKappa]", "test_time_flip=true", "wandb.tables=3",
             "wandb.mode=disabled", "device=cpu"]  # fmt: skip
    for name, argv in (
        ("train", words),
        ("evaluate", ["run_dir=run", "metrics=[F1Score]"]),
        ("predict", ["run_dir=run", "part=test"]),
    ):
        start(_as_on_cuda, (name, argv, tmp_path, False), tmp_path / name).ok(120)


def test_sums_of_metrics_are_of_kernels_that_cuda_has(torch_as_it_was):
    choose_numerics(True, "highest")
    scores, classes = torch.randn(9, 7), torch.arange(9) % 7
    with AsOnCuda():
        for sums, outputs, targets in (
            (ClassificationSums(7, "cpu"), scores, classes),
            (ClassificationSums(2000, "cpu"), torch.randn(9, 2000), classes),
            (LabelSums(7, "cpu"), scores, scores > 0),
            (RegressionSums(7, "cpu", scores[0]), scores, scores + 1),
            (LanguageSums("cpu"), scores.view(3, 3, 7), classes.view(3, 3)),
        ):
            sums.update(outputs, targets)
            assert sums.figures()


def test_histograms_are_counted_all_the_same(torch_as_it_was, monkeypatch):
    """histc is refused on CUDA where kernels are to be deterministic, though a sum of ones has the same bits anyhow."""
    values = torch.randn(1000)
    wanted, edges = torch.histogram(values, 64)
    choose_numerics(True, "highest")
    monkeypatch.setattr(histograms, "EXACT", 300)  # what float32 counts exactly, in pieces
    with AsOnCuda() as mode:
        found = histograms.of_tensors({"a": values, "same": torch.ones(5)})
        assert torch.get_deterministic_debug_mode() == 2, "asked for again"
    assert "aten.histc" in mode.seen
    assert found["a"][:2] == pytest.approx([edges[0].item(), edges[-1].item()])
    assert found["a"][2:] == wanted.tolist() and found["same"] == [1.0, 1.0, 5]


# What is said


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_operation_without_such_a_kernel_is_refused_by_name(deterministic, tmp_path):
    place(tmp_path, POOLING)
    argv = [*WORDS, f"deterministic={str(deterministic).lower()}", "device=cpu", "wandb.mode=disabled"]
    run = start(_as_on_cuda, ("train", argv, tmp_path, False), tmp_path / "io").wait()
    assert run.status == [0 if not deterministic else 1], run.err()
    if deterministic:
        assert "Traceback" not in run.err()
        said = run.err().rstrip()
        assert "failed: deterministic=true: torch's adaptive_avg_pool2d_backward_cuda has no kernel" in said
        assert said.endswith("or say deterministic=false, with which the bits may change from run to run.")
    else:
        assert summary(tmp_path / "run")["status"] == "finished"


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits_again_and_refuses_the_list(tmp_path):
    attention = ["data._target_=combination_parts.load", "+data.kind=tokens", "model=transformer", "model.layers=2",
                 "model.width=64", "model.heads=2", "mixed_precision=bf16", "batch.global_size=16"]  # fmt: skip
    place(tmp_path, POOLING)
    for name in ("one", "other"):
        train([*attention, f"hydra.run.dir={name}/run"], tmp_path).ok(300)
    one, other = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    refused = train([*WORDS, "device=auto"], tmp_path).wait(120)
    assert refused.status == [1] and "adaptive_avg_pool2d_backward_cuda has no kernel" in refused.err()


@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_the_mode_is_lifted_and_comes_back(mode):
    torch.set_deterministic_debug_mode(mode)
    before = torch.get_deterministic_debug_mode()
    with pytest.raises(KeyError), in_any_order():
        assert torch.get_deterministic_debug_mode() == 0
        raise KeyError
    assert torch.get_deterministic_debug_mode() == before
    torch.set_deterministic_debug_mode("default")
