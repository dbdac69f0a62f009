import csv

from launcher.sweep import tables
from launcher.sweep.comparison import read_sweep


def test_each_trial_is_a_row(made):
    path, _ = made
    tables.write_csv(read_sweep(path, None, None))
    rows = list(csv.DictReader((path / "grid.csv").open()))
    assert len(rows) == 7 and [row["state"] for row in rows] == ["finished"] * 6 + ["failed"]
    assert float(rows[0]["eval/loss"]) == 0.5 and rows[0]["optimizer.lr"] == "0.1" and rows[0]["seed"] == "0"
    assert rows[0]["best/eval/accuracy"] == "0.5" and rows[-1]["reason"] == "<script>no</script>"


def test_the_best_and_the_spread_are_printed(made, capsys, monkeypatch):
    path, _ = made
    monkeypatch.setattr(tables, "ROWS", 2)
    tables.print_table(read_sweep(path, None, None))
    out = capsys.readouterr().out
    assert "python launcher/train.py optimizer.lr=0.1 seed=0" in out and "0.6 ± 0.1 of 3 seeds" in out
    assert "best       eval/loss 0.5: optimizer.lr=0.1, seed=0" in out and "and 5 more in grid.csv" in out
