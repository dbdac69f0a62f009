"""The code that jobs run, copied as it is when they are submitted."""

import os
from pathlib import Path

import pytest
from own_project import git
from processes import REPOSITORY

from launcher.core.errors import ConfigError
from launcher.slurm import snapshot


def test_a_snapshot_is_the_code_as_it_is_now(project, tmp_path, monkeypatch):
    """Tracked, changed and new files; not what is ignored, deleted, large, or the outputs."""
    monkeypatch.chdir(project)
    (project / "package").mkdir()
    (project / "package/new.py").write_text("new")
    (project / "own.py").write_text("changed")
    (project / "link.py").symlink_to("own.py")
    (project / "weights.bin").write_text("ignored")
    (project / "gone.py").write_text("gone")
    (project / "naïve name.py").write_text("1")
    git(project, "add", "gone.py")
    (project / "gone.py").unlink()
    Path(os.fsdecode(os.fsencode(project) + b"/\xff.py")).write_text("no text")
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub/within.py").write_text("1")
    for place in (other / "sub", other):
        git(place, "init", "-q")
        git(place, "add", ".")
        git(place, "commit", "-qm", "one")
    git(project, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "fetched")
    (project / "large.dat").write_bytes(b"0" * (snapshot.LARGEST + 1))
    (project / "grids/one").mkdir(parents=True)
    (project / "grids/one/metrics.jsonl").write_text("{}")
    plan = snapshot.plan(project / "grids/one/submissions/1/code")
    left_out = snapshot.take(plan, project / "grids/one")
    copy = Path(plan.trees[str(project)])
    found = {str(file.relative_to(copy)) for file in copy.rglob("*") if not file.is_dir()}
    assert found == {
        ".gitignore", ".gitmodules", "own.py", "package/new.py", "link.py", "naïve name.py", "\udcff.py",
    }  # fmt: skip
    assert (copy / "link.py").read_text() == "changed" and left_out == [str(project / "large.dat")]
    assert plan.commit == git(project, "rev-parse", "HEAD") + "+"
    assert (Path(plan.code) / "launcher/train.py").read_bytes() == (REPOSITORY / "launcher/train.py").read_bytes()
    assert not list(Path(plan.code).rglob("__pycache__"))
    monkeypatch.setattr(snapshot, "MOST", 3)
    with pytest.raises(ConfigError, match="too many for code"):
        snapshot.take(snapshot.plan(tmp_path / "again"), project / "grids/one")


def test_a_package_without_a_repository_is_copied_alone(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages/launcher"
    installed.mkdir(parents=True)
    (installed / "train.py").write_text("installed")
    monkeypatch.setattr(snapshot, "PACKAGE", installed)
    monkeypatch.chdir(tmp_path)
    plan = snapshot.plan(tmp_path / "code")
    assert snapshot.take(plan, tmp_path / "grid") == [] and plan.commit is None
    assert (Path(plan.code) / "launcher/train.py").read_text() == "installed"
