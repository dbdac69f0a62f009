import json

import pytest
from scipy import stats

from launcher.commands.compare import command
from launcher.core.errors import ConfigError


def make(path, losses, **summary):
    """A sweep's files: (name, seed) to loss."""
    for (name, seed), loss in losses.items():
        trial = path / f"{name}{seed}"
        (trial / ".hydra").mkdir(parents=True)
        (trial / ".hydra/config.yaml").write_text(f"seed: {seed}\n")
        (trial / ".hydra/overrides.yaml").write_text(f"[name={name}, seed={seed}]\n")
        known = {"status": "finished", "training_seconds": 1.5, "final": {"eval/loss": loss, "eval/accuracy": -loss}}
        (trial / "summary.json").write_text(json.dumps(known | summary))
    return path


def test_the_metric_and_its_mode_are_chosen(tmp_path, capsys):
    make(tmp_path, {("a", 0): 1.0, ("b", 0): 2.0})
    for words, best in (([], "name=a"), (["--mode", "max"], "name=b")):
        assert command([str(tmp_path), "--metric", "eval/loss", *words]) == 0
        out = capsys.readouterr().out
        assert f"best       eval/loss {1 if best == 'name=a' else 2}: {best}" in out
        assert "pairs      no difference shown (1 seed)" in out
    with pytest.raises(SystemExit) as ended:
        command([str(tmp_path), "--mode", "least"])
    assert ended.value.code == 2


LOSSES = {("a", 0): 1.0, ("a", 1): 1.25, ("a", 2): 1.5, ("b", 0): 2.0, ("b", 1): 2.5, ("b", 2): 2.25}


def test_json_is_one_object_and_nothing_else(tmp_path, capsys):
    command([str(make(tmp_path, LOSSES)), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "eval/loss" and found["mode"] == "min"
    first = found["trials"][0]
    assert first["overrides"] == ["name=a", "seed=0"] and first["state"] == "finished"
    assert (first["metric"], first["seconds"], first["seed"]) == (1.0, 1.5, "0")
    a, b = found["groups"]
    assert (a["settings"], a["n"], a["mean"]) == ({"name": "a"}, 3, 1.25) and b["mean"] == 2.25
    low, high = stats.t.interval(0.95, 2, 1.25, stats.sem([1.0, 1.25, 1.5]))
    assert (a["low"], a["high"]) == pytest.approx((low, high))
    (pair,) = found["pairs"]
    expected = stats.ttest_rel([1.0, 1.25, 1.5], [2.0, 2.5, 2.25])
    assert (pair["a"], pair["b"]) == ({"name": "a"}, {"name": "b"}) and pair["difference"] == -1.0
    assert pair["p"] == pytest.approx(expected.pvalue) and pair["decided"] is True
    assert (pair["low"], pair["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert {"grid.html", "grid_pairs.csv", "grid_groups.csv", "grid_effects.csv"} <= {
        f.name for f in tmp_path.iterdir()
    }


def test_what_is_not_a_number_is_null(tmp_path, capsys):
    command([str(make(tmp_path, {("a", 0): float("nan"), ("b", 0): 2.0})), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert [group["mean"] for group in found["groups"]] == [2.0, None] and found["groups"][1]["diverged"] == 1
    assert found["pairs"][0]["difference"] is None and found["pairs"][0]["decided"] is False
    assert found["groups"][0]["low"] is None


def test_several_sweeps_are_written_where_output_says(tmp_path, capsys):
    first, second = make(tmp_path / "x", {("a", 0): 1.0}), make(tmp_path / "y", {("b", 0): 2.0, ("b", 1): 3.0})
    (first / "a0/report.html").touch()
    before = {*first.iterdir(), *second.iterdir()}
    command(
        [str(first), str(second), "--output", str(tmp_path / "out"), "--latex", "--metric", "eval/loss,eval/accuracy"]
    )
    assert {*first.iterdir(), *second.iterdir()} == before
    assert {"grid.tex", "grid.csv", "grid.html"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert 'href="../x/a0/report.html"' in (tmp_path / "out/grid.html").read_text()
    assert "x/a0" in (tmp_path / "out/grid.csv").read_text()
    assert "front      eval/loss 1, eval/accuracy -1: name=a" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no sweep in it"):
        command([str(first), str(tmp_path / "nothing"), "--output", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()
