"""golden.py: one tree twice is the same, and what differs is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import REPOSITORY

pytestmark = pytest.mark.soak
NAMES = ["muon recompute", "predicted"]


def golden(action, file, *words, names=NAMES):
    script = str(Path(__file__).with_name("golden.py"))
    command = [sys.executable, script, action, str(file), "--only", *names, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("golden") / "golden.json"
    done = golden("write", file)
    assert done.returncode == 0, done.stdout + done.stderr
    return file


def test_the_same_tree_is_the_same(written):
    done = golden("compare", written)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(any(line.startswith(name) and "the same" in line for line in done.stdout.splitlines()) for name in NAMES)


def test_a_changed_weight_and_a_changed_row_are_named(written, tmp_path):
    kept = json.loads(written.read_text())
    muon, predicted = (kept["runs"][name]["left"]["run"] for name in NAMES)
    step = max(muon["weights"])
    tensor = sorted(muon["weights"][step])[0]
    muon["weights"][step][tensor] = muon["weights"][step][tensor][:-1] + "x"
    predicted["record"][1]["train/loss"] += 1e-9
    file = tmp_path / "golden.json"
    file.write_text(json.dumps(kept))
    done = golden("compare", file)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = {name: next(line for line in done.stdout.splitlines() if line.startswith(name)) for name in NAMES}
    assert f"DIFFERS  run: weights: {step}: {tensor} is" in lines[NAMES[0]]
    assert "DIFFERS  run: record line 2: train/loss is" in lines[NAMES[1]]


def test_a_tree_that_trains_otherwise_differs(written, tmp_path):
    tree = tmp_path / "tree"
    for name in ("launcher", "conf", "hydra_plugins"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tree)
    option = tree / "conf" / "optimizer" / "muon.yaml"
    changed = option.read_text().replace("momentum: 0.95", "momentum: 0.94")
    assert changed != option.read_text()
    option.write_text(changed)
    done = golden("compare", written, "--tree", tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "muon recompute               DIFFERS  run: record line " in done.stdout
    assert "predicted                    the same" in done.stdout


def test_a_run_that_fails_is_no_baseline(tmp_path):
    tree = tmp_path / "tree"
    (tree / "launcher").mkdir(parents=True)
    (tree / "launcher" / "train.py").write_text("raise SystemExit('a wheel came off')\n")
    done = golden("write", tmp_path / "golden.json", "--tree", tree, names=["wine"])
    assert done.returncode == 1 and "wine                         FAILED" in done.stdout
    assert "a wheel came off" in done.stderr
    assert not (tmp_path / "golden.json").exists()
