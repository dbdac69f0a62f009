"""Which tests see the GPUs of a machine: those marked `gpu`, in processes of their own, and no others.

A test that is not marked runs several ranks as it does anywhere, on the CPU: CUDA_VISIBLE_DEVICES is empty before torch
is imported, in this process and in all that it starts. `pytest -m gpu` asks for the marked ones alone, and leaves it as
it was. Among others, each of them runs in a pytest of its own, which hands back its report.

GPU_TESTS_ON=cpu lets those in tests/gpu run on the CPU: what they say of a GPU they must say of it, too.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BEFORE = "GPU_TESTS_VISIBLE"  # what CUDA_VISIBLE_DEVICES was; a space where it was not set
REPORTS = "GPU_TESTS_REPORTS"  # the file into which a pytest for one test writes its reports
ON = os.environ.get("GPU_TESTS_ON", "cuda")
LIMIT = 600  # seconds for one test

# Counting GPUs starts no driver, so that processes can be forked from one that has counted: the tests' warm parent.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


class Others(dict):
    """Names of an expression for -m: all of them true, but for `gpu`."""

    def __init__(self, value):
        super().__init__(gpu=False)
        self.value = value

    def __missing__(self, name):
        return self.value


def asks_for_gpu_tests_alone(expression):
    """Whether an expression for -m, such as `gpu and not soak`, selects no test without the mark."""
    return bool(expression) and not any(eval(expression, {"__builtins__": {}}, Others(v)) for v in (True, False))


def hide():
    """Let this process and those that it starts see no GPU; it may be called again."""
    os.environ.setdefault(BEFORE, os.environ.get("CUDA_VISIBLE_DEVICES", " "))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def show(environment=os.environ):
    """Undo `hide`."""
    before = environment.pop(BEFORE, None)
    if before is not None:
        environment["CUDA_VISIBLE_DEVICES"] = before
    if before == " ":
        del environment["CUDA_VISIBLE_DEVICES"]


@functools.cache
def are_here():
    """Whether torch sees a GPU where they are not hidden; it is asked in a process of its own, and once."""
    from launcher.sweep.devices import DRIVERS

    if not any(map(os.path.exists, DRIVERS)):
        return False
    environment = dict(os.environ)
    show(environment)
    words = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LIMIT)
    return done.stdout.strip() not in ("", "0")


class Written:
    """Writes the reports of this process into a file, for the process that asked for one test."""

    def __init__(self, config, path):
        self.config, self.path = config, path

    def pytest_runtest_logreport(self, report):
        content = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with open(self.path, "a") as file:
            file.write(json.dumps(content) + "\n")


def pytest_configure(config):
    """Show the GPUs where only tests for them run."""
    if asks_for_gpu_tests_alone(config.getoption("markexpr")):
        show()
    if REPORTS in os.environ:
        config.pluginmanager.register(Written(config, os.environ.pop(REPORTS)))


def pytest_runtest_setup(item):
    """Skip what needs a GPU where torch has none."""
    if item.get_closest_marker("gpu") is None or (ON == "cpu" and item.path.parent.name == "gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run a test for GPUs in a process of its own, where this one does not see them."""
    if item.get_closest_marker("gpu") is None or BEFORE not in os.environ or not are_here():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _run_alone(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_alone(item):
    """The reports of a test that runs in a process of its own; one that says what happened where there is none."""
    environment = dict(os.environ)
    for name in [name for name in environment if name.startswith(("PYTEST_", "COV_"))]:
        del environment[name]  # of xdist's workers: a pytest that finds them takes itself for one
    show(environment)
    with tempfile.TemporaryDirectory() as place:
        environment[REPORTS] = f"{place}/reports"
        words = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu", item.nodeid]
        try:
            done = subprocess.run(
                words, cwd=item.config.rootpath, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
            said = f"exit status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        except subprocess.TimeoutExpired as error:
            said = f"no end after {LIMIT} s\n{(error.stdout or b'').decode(errors='replace')[-4000:]}"
        file = Path(environment[REPORTS])
        lines = file.read_text().splitlines() if file.exists() else []
    read = item.config.hook.pytest_report_from_serializable
    reports = [read(config=item.config, data=json.loads(line)) for line in lines]
    for report in reports:
        if isinstance(report.longrepr, list):  # why it was skipped: JSON has no tuples, and pytest wants one
            report.longrepr = tuple(report.longrepr)
    if not any(report.when == "teardown" for report in reports):  # it died, or never began
        reports.append(
            pytest.TestReport(item.nodeid, item.location, {}, "failed", f"its own process ended early: {said}", "call")
        )
    return reports
