"""A module in a process of its own: found without being installed, and hidden by nothing that lies around."""

import subprocess
from pathlib import Path

from launcher.core.processes import ROOT, module_command


def test_a_module_is_found_and_neither_place_hides_a_package(tmp_path):
    """Beside a csv.py in the working directory, and the csv.py of the trackers."""
    (tmp_path / "csv.py").write_text("raise SystemExit('the wrong csv')\n")
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')\n")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("metrics.jsonl", "timings.jsonl"):
        (run_dir / name).touch()
    command = module_command("launcher.run.trackers.view_process", str(run_dir), "0", "csv")
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run_dir / "metrics.csv").read_text().strip() == "step,epoch"


def test_the_package_of_this_tree_is_the_one_that_runs(tmp_path):
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher/__init__.py").write_text("raise SystemExit('another launcher')\n")
    command = module_command("launcher.__main__", "--version")
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and "launcher" in done.stdout, done.stderr
    assert (Path(ROOT) / "launcher/core/processes.py").exists()
