"""Files of a run: whole or as before, whatever is full or killed; JSON for a strict reader; modes as the umask says."""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import time

import processes
import pytest
from processes import command, rows, summary

from launcher.core import files

OWN = """
import torch
from launcher.data import Data, TensorSplit

class Net(torch.nn.Sequential):
    def __init__(self, num_outputs):
        super().__init__(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, num_outputs))
    def forward(self, x):
        return super().forward(x) * torch.sqrt(9 - x[:, :1].clamp(min=8))

def load(broken=True):
    g = torch.Generator().manual_seed(0)
    def part(n, bad=False):
        y = torch.arange(n) % 3
        x = torch.randn(n, 5, generator=g) + y[:, None]
        x[-1] = 99 if bad else x[-1]  # one is tried before the run, the first
        return TensorSplit(x, y)
    return Data("own", "classification", (5,), 3, part(60), part(30, broken), part(30, broken), class_names=["nan", "inf", "c"])
"""  # noqa: E501
RUN = ["data._target_=own.load", "model._target_=own.Net", "threads=1", "epochs=3", "log_every=2", "device=cpu"]


def strict(path):
    """A JSON file by a reader that takes JSON and nothing else."""

    def refuse(word):
        raise ValueError(f"{path}: {word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def _with_umask(program, argv, directory):
    os.umask(0o007)
    processes._command(program, argv, directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run whose evaluations are NaN, with all that there is to make of it, written under the umask 007."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "own.py").write_text(OWN)
    for number, (program, *words) in enumerate([
        ["train", *RUN, "trackers=[csv]", "wandb.tables=3", "hydra.run.dir=run"],
        ["evaluate", "run"],
        ["evaluate", "run", "part=validation"],
        ["predict", "run", "part=train"],
        ["export", "run", "part=train", "output=exported"],
        ["find_lr", *RUN, "hydra.run.dir=range", "find_lr.steps=20"],
        ["compare", "."],
    ]):  # fmt: skip
        processes.start(_with_umask, (program, words, directory), directory / f"io{number}").ok()
    return directory


def test_every_json_of_a_run_is_json(place):
    found = {path.relative_to(place).as_posix(): strict(path) for path in place.rglob("*.json")}
    assert {"run/summary.json", "run/evaluation.json", "run/evaluation_validation.json", "run/data.json",
            "run/provenance.json", "range/lr_range.json", "exported/metadata.json"} <= found.keys()  # fmt: skip
    assert found["run/summary.json"]["final"]["eval/loss"] == found["run/summary.json"]["best"]["eval/loss"] == "nan"
    assert found["run/evaluation.json"]["metrics"]["loss"] == "nan"
    assert found["run/evaluation.json"]["class_names"] == ["nan", "inf", "c"]


def test_our_own_readers_take_them(place):
    with (place / "grid.csv").open(newline="") as file:
        found = {row["trial"]: row for row in csv.DictReader(file)}
    assert found["run"]["eval/loss (compared)"] == found["run"]["best/eval/loss"] == "nan"
    page = (place / "run/report.html").read_text()
    assert "<td>nan</td>" in page and page.endswith("</html>\n")
    said = command("rerun", ["run", "dry_run=true"], place, name="io6").ok().out()
    assert "data" not in said.replace("devices and data", "")


def test_the_umask_counts_for_every_file(place):
    found = [
        path
        for path in place.rglob("*")
        if not path.relative_to(place).parts[0].startswith("io") and path.name != "own.py"
    ]
    names = {path.name for path in found}
    assert {"model.safetensors", "state.pt", "curves.png", "report.html", "summary.json", ".lock", "metrics.jsonl",
            "predictions.csv", "lr_range.csv", "lr_range.png", "grid.png", "README.md"} <= names  # fmt: skip
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o770 if path.is_dir() else 0o660), path
    assert not [path for path in found if path.name.endswith(".new")]


def test_what_json_lacks_is_written_in_words_and_read_back(tmp_path):
    content = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5, "e": "nan", "f": None, "g": (1, True)}
    files.write_json(tmp_path / "x.json", content)
    found = strict(tmp_path / "x.json")
    assert found == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": 1.5, "e": "nan", "f": None, "g": [1, True]}
    assert math.isnan(files.numbers(found)["a"]) and files.number(found["b"][0]) == math.inf
    assert files.numbers(["no object"]) == {} and files.read_json(tmp_path / "absent.json") == {}


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        files.write_text(disk / "report.html", "whole")
        for durable in (False, True):
            with pytest.raises(OSError, match="No space"):
                files.write_text(disk / "report.html", "0" * 200_000, durable)
            assert [path.name for path in disk.iterdir()] == ["report.html"]
            assert (disk / "report.html").read_text() == "whole"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    """A process rewrites a file over and over, and is killed: whoever looks, whenever, one of its texts is there."""
    file = tmp_path / "summary.json"
    files.write_json(file, {"numbers": [0] * 5000})
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            for i in range(10**9):
                files.write_json(file, {"numbers": [i % 10] * 5000})
        os._exit(1)
    seen = set()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        found = strict(file)["numbers"]
        assert len(found) == 5000 and len(set(found)) == 1
        seen.add(found[0])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(strict(file)["numbers"]) == 5000 and len(seen) > 2


def test_the_record_of_such_a_run_is_json_too(place):
    assert {row["eval/loss"] for row in rows(place / "run") if "eval/loss" in row} == {"nan"}
    assert summary(place / "run")["status"] == "finished"
