import json

import pytest

from launcher.commands.compare import command


def test_the_metric_and_its_mode_are_chosen(tmp_path, capsys):
    for name, loss in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra/config.yaml").write_text("seed: 0\n")
        (tmp_path / name / ".hydra/overrides.yaml").write_text(f"[name={name}]\n")
        summary = {"status": "finished", "final": {"eval/loss": loss}}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    for words, best in (([], "name=a"), (["--mode", "max"], "name=b")):
        assert command([str(tmp_path), "--metric", "eval/loss", *words]) == 0
        assert f"best       eval/loss {1 if best == 'name=a' else 2}: {best}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        command([str(tmp_path), "--mode", "least"])
    assert ended.value.code == 2
