"""Sweeps of real processes for tests: a model that misbehaves on request, how they are started and looked at."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import REPOSITORY

TRAIN = str(REPOSITORY / "launcher/train.py")


# A model that misbehaves on request in its third step, on its last rank, and notes when it lived and on what.
OWN = """
import atexit, os, shutil, signal, time
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes, mode="ok", delay=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)
        self.mode, self.delay, self.steps = mode, delay, 0
        self.note("begin")
        if mode == "late":
            from launcher.run.reporter import Reporter
            show = Reporter.show
            Reporter.show = lambda *given: (time.sleep(17), show(*given))
    def note(self, what):
        if "NOTES" in os.environ:
            line = f"{time.time()} {what} {os.getpid()} {os.environ['LAUNCHER_DEVICES']}\\n"
            with open(os.environ["NOTES"], "a") as file:
                file.write(line)
    def forward(self, x):
        self.steps += self.training
        last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
        if self.training and self.delay:
            time.sleep(self.delay)
        if self.steps == 4 and last and "CURED" not in os.environ:
            if self.mode == "raise":
                raise RuntimeError("a wheel came off")
            if self.mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mode == "hang":
                time.sleep(1000)
            if self.mode == "full" and "LAUNCHER_MEMORY_SHARE" in os.environ:
                raise torch.OutOfMemoryError("a part of the device is not enough")
            if self.mode == "spin":  # as a process that waits for a GPU which never answers
                while True: pass
            if self.mode == "vanish":  # with its directory, as on a disk that nothing can be written to
                shutil.rmtree(os.path.dirname(os.readlink("/proc/self/fd/1")))
                os._exit(1)
        return self.layer(x.flatten(1))
"""


OWN_MODEL = ["model._target_=own.Net", "epochs=1", "threads=1", "wandb.mode=disabled", "hydra.sweep.dir=grid"]


def own_tmp(place):
    """Where the sweeps of a test have their locks: beside it, with a name longer than those of sockets can be."""
    path = place.parent / f"{place.name}-{'t' * 100}"
    path.mkdir(exist_ok=True)
    return str(path)


def start(words, place, launcher=(), **environment):
    variables = os.environ | {"TMPDIR": own_tmp(place), "WANDB_MODE": "disabled"} | environment
    return subprocess.Popen(
        [*(launcher or [sys.executable]), TRAIN, "-m", *words],
        cwd=place, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def end(process, timeout=150):
    """Status, output and errors; it is killed where it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"it did not end:\n{out}\n{err}")
    return process.returncode, out, err


def trials(directory):
    """Run directories by the value of what varies."""
    return {path.name: path for path in sorted(Path(directory).iterdir()) if path.is_dir()}


def summary(path):
    return json.loads((path / "summary.json").read_text())


def of(directory, text):
    found = [path for name, path in trials(directory).items() if text in name]
    assert len(found) == 1, (text, list(trials(directory)))
    return found[0]


def weights(path):
    newest = max((path / "checkpoints").glob("step_*/model.safetensors"))
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def snapshot(path):
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}


def wait_for(condition, process, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def all_are_refused(running, wrong):
    """That processes end with status 2 and one sentence, which has the texts in `wrong` of the same name."""
    for what, process in running.items():
        status, _, err = end(process)
        assert status == 2, (what, err)
        assert err.startswith("error: ") and "Traceback" not in err, (what, err)
        for text in wrong[what][1]:
            assert text in err, (what, err)
