"""On a machine with GPUs, tests that are not for them do not see them; those that are run in processes of their own."""

import os
import re
import subprocess
import sys

import gpus
import pytest
from processes import REPOSITORY, start

CONFTEST = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import gpus
gpus.hide()
gpus.are_here = lambda: True  # as on a machine with a driver
from gpus import pytest_configure, pytest_runtest_protocol

def pytest_runtest_setup(item):  # in the place of asking torch, which has none here
    pass
"""
TESTS = """
import os, pytest
SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")  # when the file is imported, as torch is

def test_for_the_cpu():
    assert SEEN == os.environ["CUDA_VISIBLE_DEVICES"] == ""

@pytest.mark.gpu
def test_for_a_gpu():
    assert SEEN == os.environ.get("CUDA_VISIBLE_DEVICES") == WANTED

@pytest.mark.gpu
@pytest.mark.skipif(SEEN == "", reason="it is judged where the GPUs are seen")
@pytest.mark.parametrize("number", [1, 2])
def test_with_a_condition(number):
    assert number

@pytest.mark.gpu
def test_that_fails():
    assert 1 + 1 == 3

@pytest.mark.gpu
def test_that_kills_its_process():
    os.abort()

@pytest.mark.gpu
def test_that_skips_itself():
    pytest.skip("not today")
"""


def run_pytest(words, place, visible, **more):
    """A pytest as a person starts it, with CUDA_VISIBLE_DEVICES as given; None: not set."""
    leave = ("PYTEST_", "GPU_TESTS_", "CUDA_VISIBLE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(leave)} | more
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def suite(tmp_path):
    """A suite of its own, with the marks and hooks of this one."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    return tmp_path


@pytest.mark.parametrize(
    ("workers", "visible"),
    [pytest.param([], None, marks=pytest.mark.soak), (["-n", "2"], "7")],
    ids=["alone", "xdist"],
)
def test_gpu_tests_run_in_processes_of_their_own(workers, visible, suite):
    (suite / "test_own.py").write_text(TESTS.replace("WANTED", repr(visible)))
    done = run_pytest(["-v", "-rA", *workers], suite, visible)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (failed|passed|skipped)", done.stdout.splitlines()[-1])}
    assert counts == {"passed": 4, "failed": 2, "skipped": 1}, done.stdout
    assert "assert (1 + 1) == 3" in done.stdout and "its own process ended early" in done.stdout
    assert "not today" in done.stdout


def test_where_they_alone_are_asked_for_they_share_one(suite):
    (suite / "test_own.py").write_text(TESTS.replace("WANTED", repr("7")))
    done = run_pytest(["-m", "gpu", "-k", "for_a_gpu or condition", "-v"], suite, "7")
    assert "3 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("expression", "alone"),
    [
        ("", False), ("gpu", True), ("not gpu", False), ("soak", False), ("not soak", False),
        ("gpu and not soak", True), ("gpu and soak", True), ("gpu or soak", False), ("soak or not soak", False),
    ],
)  # fmt: skip
def test_which_expressions_ask_for_them_alone(expression, alone):
    assert gpus.asks_for_gpu_tests_alone(expression) is alone


def _look(path):
    import torch

    path.write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']!r} {torch.cuda.device_count()}")


def test_no_gpu_is_seen_here_nor_in_processes_that_tests_start(tmp_path):
    import torch

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()
    start(_look, (tmp_path / "seen",), tmp_path / "io").ok()
    assert (tmp_path / "seen").read_text() == "'' 0"


@pytest.mark.parametrize("visible", ["7", *(pytest.param(value, marks=pytest.mark.soak) for value in (None, ""))])
def test_a_part_of_the_suite_passes_whatever_is_visible(visible):
    """GPUs that do not exist, or none: ranks, the warm parent, and tests for GPUs, which are skipped."""
    parts = ["tests/batching/test_plan.py", "tests/training/test_hot_loop.py", "tests/gpu"]
    chosen = "batch or gpu or log_boundaries and 2-plain"
    done = run_pytest(["-o", "addopts=", "-rs", "-k", chosen, *parts], REPOSITORY, visible)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
    if visible == "7":
        assert re.search(r"SKIPPED \[\d+\].*needs a GPU", done.stdout), done.stdout
