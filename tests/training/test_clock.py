"""Where time goes: operations against closed forms, a slow rank that is named, a trace that opens."""

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_loop import OWN, RUN, place
from processes import rows, start, summary, train
from torch import nn

from launcher.batching.plan import plan_batch
from launcher.distributed.process_group import find_ranks
from launcher.training.clock import PEAK, Clock, PeakMemory, flops_per_sample, peak_flops


def test_operations_of_a_dense_and_of_a_convolutional_network():
    mlp = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    assert flops_per_sample(mlp, torch.zeros(32, 784), 32) == 3 * 2 * (784 * 64 + 64 * 10)
    cnn = nn.Conv2d(3, 8, kernel_size=5, padding=2)
    assert flops_per_sample(cnn, torch.zeros(4, 3, 16, 16), 4) == 3 * 2 * 8 * 16 * 16 * 3 * 5 * 5
    norm = nn.BatchNorm1d(4).train()
    flops_per_sample(norm, torch.randn(8, 4), 8)
    assert norm.training and norm.num_batches_tracked == 0, "left as it was"


def test_shares_of_a_run_that_came_back_for_its_evaluation_alone():
    clock = Clock(7, torch.device("cpu"), find_ranks({}))
    with clock.during("evaluating"):
        time.sleep(0.01)
    totals = clock.totals(7, plan_batch(100, 10, 1, None, None), [3.0, 5.0, 4.0])
    assert 0 < totals["time_shares"]["evaluating"] <= 1
    assert totals["peak_memory_mb"] == 5, "of the rank that has most"


@pytest.mark.parametrize(
    ("name", "precision", "matmul", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", "highest", 989e12),
        ("NVIDIA H100 80GB HBM3", "no", "highest", 67e12),
        ("NVIDIA H100 80GB HBM3", "no", "high", 494.5e12),
        ("NVIDIA H100 PCIe", "bf16", "high", 756e12),
        ("NVIDIA H100 PCIe", "no", "highest", 51e12),
        ("NVIDIA A100-SXM4-80GB", "no", "highest", 19.5e12),
        ("NVIDIA A100-SXM4-80GB", "no", "medium", 156e12),
        ("NVIDIA L40S", "fp16", "highest", 362e12),
        ("NVIDIA L4", "fp16", "highest", 121e12),
        ("Tesla T4", "fp16", "highest", 65e12),
        ("Tesla T4", "no", "high", 8.1e12),
        ("A card of tomorrow", "bf16", "highest", None),
    ],
)
def test_peaks_by_the_names_that_cuda_gives(name, precision, matmul, peak):
    """TF32 counts where float32 is computed so: utilisation over a peak that a run cannot reach says nothing."""
    assert peak_flops(name, precision, matmul) == peak


def test_full_float32_is_the_least_that_a_device_reaches():
    """And half precision twice TF32, where there is that: a figure with sparsity in it would show."""
    for single, tf32, half in PEAK.values():
        assert single <= tf32 < half and (single == tf32 or 1.95 < half / tf32 < 2.05)


def _peaks(directory):
    """In MB: the most while this process starts, and then the peaks of a clock that was made after that."""
    megabyte = np.ones(1 << 17)  # 8 bytes each
    before = [megabyte.copy() for _ in range(600)]  # which the system takes back at once
    start = PeakMemory(torch.device("cpu")).mb()
    before.clear()
    clock = Clock(0, torch.device("cpu"), find_ranks({}))
    found = [start, clock.memory.mb()]
    held = [megabyte.copy() for _ in range(200)]
    found.append(clock.memory.mb())
    held.clear()
    found += [clock.memory.mb(), clock.row(1, plan_batch(100, 10, 1, None, None))["memory_mb"]]
    (Path(directory) / "peaks.json").write_text(json.dumps(found))


def test_peak_memory_is_of_the_training_and_not_of_what_came_before(tmp_path):
    start(_peaks, (str(tmp_path),), tmp_path / "io").ok()
    start_up, begun, held, released, row = json.loads((tmp_path / "peaks.json").read_text())
    assert begun < start_up - 500
    assert held == pytest.approx(begun + 200, abs=20)
    assert released == pytest.approx(held, abs=1) and row == pytest.approx(held, abs=1), (
        "the most so far, not what is now"
    )


def test_peak_memory_where_the_kernel_tells_none(monkeypatch):
    """As on macOS: what getrusage knows, from the start of the process on."""

    def refuse(*_):
        raise FileNotFoundError("/proc")

    monkeypatch.setattr("builtins.open", refuse)
    found = PeakMemory(torch.device("cpu")).mb()
    assert found == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_peak_memory_is_that_of_the_rank_that_has_most(tmp_path):
    """Rank 1 alone takes 300 MB, in its steps; both take 500 MB before, as a probe would."""
    code = OWN + (
        "import os, numpy\n"
        "CALLS = []\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__(5, num_outputs)\n"
        "        numpy.ones(500 << 17)\n"
        "    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled():\n"
        "            CALLS.append(numpy.ones(300 << 17)[0] if os.environ['RANK'] == '1' and len(CALLS) == 9 else 0)\n"
        "        return super().forward(x)\n"
    )
    words = [*(w for w in RUN if not w.startswith(("model.", "batch.max", "epochs", "log"))), "model._target_=own.Net",
             "epochs=3", "log_every=1"]  # fmt: skip
    train(words, place(tmp_path, code), 2).ok()
    timings = [json.loads(line) for line in (tmp_path / "run/timings.jsonl").read_text().splitlines()]
    first, last = timings[0]["memory_mb"], timings[-1]["memory_mb"]
    assert 250 < last - first < 400 and first < 500, "neither the constructor nor anything before the first step"
    assert summary(tmp_path / "run")["peak_memory_mb"] >= last


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_of_a_gpu():
    torch.empty(1 << 28, device="cuda")
    memory = PeakMemory(torch.device("cuda", 0))
    begun = memory.mb()
    torch.empty(1 << 26, device="cuda")
    assert memory.mb() - begun == pytest.approx(256, abs=4)


def test_utilisation_is_achieved_over_possible(monkeypatch):
    """100 steps of 60 samples in 2 s at 1e9 operations each are 3e12 per second: 3 % of 1e14."""
    now = iter([0.0, 2.0])
    monkeypatch.setattr("launcher.training.clock.time.perf_counter", lambda: next(now))
    clock = Clock(0, torch.device("cpu"), find_ranks({}), None, 1e9, 1e14)
    row = clock.row(100, plan_batch(600, 60, 1, None, None))
    assert (row["steps_per_second"], row["samples_per_second"]) == (50, 3000)
    assert row["mfu"] == pytest.approx(0.03)


def test_shares_of_a_run_are_the_whole_of_it(tmp_path):
    train([*RUN, "profile=true"], place(tmp_path)).ok()
    found = summary(tmp_path / "run")
    shares = found["time_shares"]
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0 and shares["saving"] > 0
    events = json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event["name"].startswith("ProfilerStep")]
    assert len({event["name"] for event in steps}) == 5
    assert "aten::addmm" in {event["name"] for event in events}
    assert "aten::" in (tmp_path / "run/train.log").read_text()  # which ones take longest is chance
    assert all("computing" not in row for row in rows(tmp_path / "run")), "nothing of the clock is in the record"


def test_the_rank_that_the_others_wait_for_is_named(tmp_path):
    code = OWN + (
        "import os, time\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__(5, num_outputs)\n"
        "    def forward(self, x):\n"
        "        time.sleep(0.02 if self.training and os.environ['RANK'] == '1' else 0)\n"
        "        return super().forward(x)\n"
    )
    words = [*(w for w in RUN if not w.startswith(("model.", "batch.max", "epochs"))), "model._target_=own.Net",
             "epochs=30", "log_every=10"]  # fmt: skip
    train(words, place(tmp_path, code), 2).ok()
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("rank 1 is slow") == 1 and "rank 0 is slow" not in log
    timings = [json.loads(line) for line in (tmp_path / "run/timings.jsonl").read_text().splitlines()]
    assert {row["slowest_rank"] for row in timings if "slowest_rank" in row} == {1}
    assert summary(tmp_path / "run")["time_shares"]["communication"] > 0.3, "rank 0 waits for rank 1's gradients"
