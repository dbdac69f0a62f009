import os

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.conclusion import compare, conclude


def test_all_files_are_written(made, capsys):
    path, _ = made
    compare(path, None, None)
    assert {"grid.csv", "grid.html", "grid.png"} <= {file.name for file in path.iterdir()}
    assert (path / "grid.png").stat().st_size > 10_000 and "grid.html" in capsys.readouterr().out


def test_a_metric_that_no_trial_has_costs_a_sweep_only_that(made, capsys):
    path, _ = made
    conclude(path, "eval/acuracy", None)
    said = capsys.readouterr().out
    assert "metric=eval/acuracy: no trial has it. There are: eval/a" in said and "grid.html" in said
    with pytest.raises(ConfigError, match="eval/accuracy"):
        compare(path, "eval/acuracy", None)


def test_a_sweep_that_cannot_be_written_to_is_printed(made, capsys):
    path, _ = made
    (path / "grid.csv").mkdir()  # as for root every directory can be written to
    compare(path, None, None)
    out = capsys.readouterr().out
    assert f"grid.csv, grid.png and grid.html cannot be written into {os.path.realpath(path)}" in out
    assert "best       eval/loss 0.5" in out
