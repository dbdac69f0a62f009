"""The record: each step once and in order, whatever is killed; floats to the last bit."""

import json
import math
import signal
import subprocess
import sys

import pytest
from processes import REPOSITORY

from launcher.run.record import Record


def steps(path):
    return [row["step"] for row in Record(path).rows()]


def test_floats_read_back_bit_for_bit_and_step_comes_first(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1074 * 3]
    record = Record(tmp_path / "metrics.jsonl")
    record.open(None)
    record.write({"lr": 0.1, "step": 7} | {f"v{i}": v for i, v in enumerate(values)})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith('{"step": 7, "lr": 0.1,') and text.endswith("}\n")
    row = json.loads(text)
    assert [row[f"v{i}"].hex() for i in range(len(values))] == [v.hex() for v in values]


def test_non_finite_numbers_are_valid_json_and_read_back(tmp_path):
    record = Record(tmp_path / "metrics.jsonl")
    record.open(None)
    record.write({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf})
    strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert strict == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    row = next(record.rows())
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


@pytest.mark.parametrize(
    ("tail", "resume", "expected"),
    [
        (b"", None, []),
        (b"", 0, []),
        (b"", 3, [1, 2, 3]),
        (b"", 99, [1, 2, 3, 4, 5]),
        (b'{"step": 6, "train/lo', 99, [1, 2, 3, 4, 5]),  # torn
        (b'{"step": 6}', 99, [1, 2, 3, 4, 5]),  # whole but for its end: the next row would land on the same line
        (b"\0\0\0\0\n", 99, [1, 2, 3, 4, 5]),  # a file system after a power cut
    ],
)
def test_resume_keeps_each_step_once_up_to_the_checkpoint(tmp_path, tail, resume, expected):
    path = tmp_path / "metrics.jsonl"
    first = b"".join(b'{"step": %d, "a": 1}\n' % n for n in range(1, 6))
    path.write_bytes(first + tail)
    record = Record(path)
    record.open(resume)
    assert steps(path) == expected
    following = (expected[-1] if expected else 0) + 1
    record.write({"step": following})
    assert steps(path) == [*expected, following]
    assert path.read_bytes().startswith(b"".join(first.splitlines(keepends=True)[: len(expected)]))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_step_that_is_not_above_the_last_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4}\n')
    record = Record(path)
    record.open(4)
    with pytest.raises(ValueError, match="step 4 after the row for step 4"):
        record.write({"step": 4})


def test_a_killed_process_leaves_every_row_that_it_wrote(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from launcher.run.record import Record\n"
        "record = Record(Path(sys.argv[1])); record.open(None)\n"
        "for n in range(1, 501): record.write({'step': n, 'x': n / 7})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path / "m.jsonl") == list(range(1, 501))
