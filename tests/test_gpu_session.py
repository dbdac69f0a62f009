"""benchmarks/gpu: a session goes on whatever a step does, and what its steps count and compare."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import REPOSITORY

from benchmarks.gpu import figures, session, steps, traces, workloads
from benchmarks.gpu.session import Step
from launcher.config.command_line import parse_arguments

WRITES = """
import json, os, subprocess, sys, time
rows = open(sys.argv[1], "a")
def note(**row):
    rows.write(json.dumps(row) + "\\n"); rows.flush()
"""
DOES = {
    "works": 'note(what="sum", ok=True, figure="2")',
    "fails": 'note(what="first", ok=True, figure="1"); print("a word"); sys.exit("what went wrong")',
    "differs": 'note(what="sum", ok=False, figure="3")',
    "hangs": """
note(what="first", ok=True, figure="1")
rows.write('{"what": "half'); rows.flush()
child = subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(100)"])
open(os.environ["CHILD"], "w").write(str(child.pid))
time.sleep(100)
""",
    "later": 'note(what="sum", ok=True, figure="4")',
}


def hold(out, monkeypatch, names, limit=20.0, seconds=60.0, **needs):
    """A session of steps that do what DOES says."""
    chosen = [Step(name, f"What {name}", limit, needs.get(name, ())) for name in names]
    monkeypatch.setenv("CHILD", str(out.parent / "child"))
    monkeypatch.setattr(session, "machine", lambda: {"date": "2026-01-31", "python": "3.12", "torch": "2.11"})
    command = lambda step, rows, left: [sys.executable, "-c", WRITES + DOES[step.name], str(rows)]  # noqa: E731
    return session.hold(out, chosen, seconds, False, command)


def test_a_step_that_fails_or_lacks_something_is_recorded_and_the_next_one_begins(tmp_path, monkeypatch):
    names = ["works", "fails", "differs", "later"]
    found = hold(tmp_path / "out", monkeypatch, names, works=(), differs=("no_such_package", "json"))
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written == found
    assert [entry["status"] for entry in found["steps"]] == ["done", "failed", "lacking", "done"]
    assert found["steps"][1]["rows"] == [{"what": "first", "ok": True, "figure": "1"}]
    assert "what went wrong" in found["steps"][1]["note"]
    assert "no_such_package. Put their wheels into .whl/" in found["steps"][2]["note"]
    assert "a word" in (tmp_path / "out/fails.log").read_text()
    page = (tmp_path / "out/figures.md").read_text()
    assert "| What fails" in page and "| failed" in page and "what went wrong" in page and "torch 2.11" in page


def test_what_does_not_hold_fails_its_step(tmp_path, monkeypatch):
    found = hold(tmp_path / "out", monkeypatch, ["differs"])
    assert found["steps"][0]["status"] == "failed"
    assert "| sum  | NO    | 3      |" in (tmp_path / "out/figures.md").read_text()


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    begun = time.monotonic()
    found = hold(tmp_path / "out", monkeypatch, ["hangs", "later"], limit=3.0)
    assert time.monotonic() - begun < 15
    assert [entry["status"] for entry in found["steps"]] == ["out of time", "done"]
    assert found["steps"][0]["rows"] == [{"what": "first", "ok": True, "figure": "1"}], "and not the half of a row"
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_when_no_time_is_left_the_rest_says_so(tmp_path, monkeypatch):
    found = hold(tmp_path / "out", monkeypatch, ["hangs", "works", "later"], seconds=3.0)
    assert [entry["status"] for entry in found["steps"]] == ["out of time", "no time was left", "no time was left"]


def test_the_results_stand_after_every_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(session, "write", lambda out, results: seen.append([e["name"] for e in results["steps"]]))
    hold(tmp_path / "out", monkeypatch, ["works", "later"])
    assert seen == [[], ["works"], ["works", "later"]]


def test_the_page_has_the_figures_of_contenders():
    rows = [
        {"contender": name, "round": number, "steps_per_second": rate}
        for number in (0, 1) for name, rate in (("launcher", 30.0 + number), ("by hand", 20.0))
    ]  # fmt: skip
    rows.append({"contender": "launcher", "round": 0, "synchronisations": 0.2})
    step = {"name": "mlp", "what": "MLP", "status": "done", "seconds": 9.0, "rows": rows}
    page = figures.page({"dry": True, "machine": {"date": "2026-01-31", "python": "3.12"}, "steps": [step]})
    assert "30 (30 to 31)" in page or "31 (30 to 31)" in page
    assert "1.52 times the steps, 2 rounds" in page and "0.2 (0.2 to 0.2)" in page and "A dry run, on the CPU" in page


def event(name, start, length=1.0, kind="cpu_op"):
    return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": length}


def test_waits_for_the_device_are_counted_within_steps(tmp_path):
    """Two steps of 10 us; three waits in them, one before and one after; the device's own rows do not count."""
    events = [
        event("ProfilerStep#11", 100, 10, "user_annotation"), event("ProfilerStep#12", 110, 10, "user_annotation"),
        event("ProfilerStep#11", 300, 10, "gpu_user_annotation"), event("cudaLaunchKernel", 101, 1, "cuda_runtime"),
        *(event("cudaStreamSynchronize", at, 1, "cuda_runtime") for at in (90, 102, 115, 305)),
        event("cudaDeviceSynchronize", 118, 1, "cuda_runtime"), event("aten::_local_scalar_dense", 102),
        {"ph": "i", "name": "no length", "ts": 101},
    ]  # fmt: skip
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert traces.synchronisations(path) == 1.5
    path.write_text(json.dumps({"traceEvents": events[3:]}))
    with pytest.raises(ValueError, match="no step"):
        traces.synchronisations(path)


@pytest.mark.parametrize(("reads", "expected"), [(0, 0.0), (2, 2.0)])
def test_a_real_trace_shows_a_loop_that_reads_numbers(reads, expected, tmp_path):
    from launcher.training.clock import start_profiler

    profiler = start_profiler(tmp_path / "trace.json")
    number = torch.ones(3)
    for _ in range(20):
        total = (number * 2).sum()
        for _ in range(reads):
            total.item()
        profiler.step()
    profiler.stop()
    assert traces.synchronisations(tmp_path / "trace.json") == expected


def test_the_model_is_resnet_18():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    own, theirs = workloads.ResNet18(1000).eval(), torchvision.models.resnet18().eval()
    own.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(own(images), theirs(images))


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_the_launcher_is_told_to_do_what_the_loop_does(name):
    """The same model, size for size, from the words of the command line."""
    from launcher.build import build
    from launcher.config import composition
    from launcher.distributed.ranks import find_ranks

    workload = workloads.DRY[name]
    with composition.opened(parse_arguments([]), "train") as (hydra, config_name):
        settings = composition.compose(hydra, config_name, workloads.words(workload, 0)).settings
    parts = build(settings, find_ranks({}), 1, False, lambda make: make(), tried=False)
    by_hand = [tuple(p.shape) for p in workloads.build_model(workload).parameters()]
    assert [tuple(p.shape) for p in parts.model.parameters()] == by_hand
    assert parts.plan.global_size == workload.batch and parts.total_steps == workload.steps
    part = workloads.load(workload.name, workload.samples, workload.side).train
    assert torch.equal(parts.data.train.inputs, part.inputs) and torch.equal(parts.data.train.targets, part.targets)


def test_outcomes_of_tests_are_read_with_and_without_workers():
    lines = {
        "tests/gpu/test_a.py::test_b[adam, channels_last] PASSED            [  5%]": ("PASSED", "channels_last]"),
        "[gw3] [ 12%] FAILED tests/gpu/test_a.py::test_b[c] ": ("FAILED", "test_b[c]"),
        "tests/gpu/test_a.py::test_b SKIPPED (needs a GPU)                  [100%]": ("SKIPPED", "test_b"),
    }
    for line, (kind, end) in lines.items():
        found = steps.OUTCOME.match(line.rstrip())
        assert (found["kind"] or found["kind2"]) == kind and (found["test"] or found["test2"]).endswith(end)
    assert not steps.OUTCOME.match("FAILED tests/gpu/test_a.py::test_b - AssertionError")


def test_without_a_gpu_it_says_so(tmp_path):
    words = [str(REPOSITORY / "benchmarks/gpu/run.sh"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "torch sees no GPU here" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.soak
def test_a_dry_run_of_all_of_it(tmp_path):
    # It takes a minute and a half on two idle cores, which a test cannot count on.
    words = [str(REPOSITORY / "benchmarks/gpu/run.sh"), str(tmp_path / "out"), "--dry", "--minutes", "6"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert done.returncode == 0, (done.stdout, done.stderr, found)
    assert [entry["name"] for entry in found["steps"]] == [step.name for step in session.STEPS]
    rows = {entry["name"]: entry["rows"] for entry in found["steps"]}
    assert all(rows.values()) and len(rows["combinations"]) == 5 and len(rows["smoke"]) == 5
    for name in workloads.WORKLOADS:
        measured = figures.rounds_of(rows[name])[0]
        assert all(measured[one]["steps_per_second"] > 0 for one in ("launcher", "by hand"))
        assert measured["launcher"]["synchronisations"] == 0
