import os
import sys

import pytest

from launcher.sweep.submissions import in_queue


def test_a_sweep_that_was_never_submitted_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))  # without SLURM
    assert in_queue(tmp_path) == {}
    (tmp_path / "submissions/1").mkdir(parents=True)
    (tmp_path / "submissions/1/job.json").write_text('{"job": "7", "points": ["a"]}')
    with pytest.raises(RuntimeError, match=r"squeue .*--jobs 7 "):
        in_queue(tmp_path)
