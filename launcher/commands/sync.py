"""Upload the W&B runs that were recorded offline, from a machine that has a network: each finished run once.

    launcher sync outputs

Compute nodes often have no way out. `wandb sync` alone takes one run directory at a time, and would also take runs
that are still being written.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.run.lock import is_held
from launcher.run.run_directory import UNSHOWN
from launcher.sweep.trials import state_of

PATIENCE = 600  # seconds for the upload of one run


def find(root: Path, also_unfinished: bool) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The offline segments at any depth below a directory that are to be uploaded, and those that are not yet.

    Of runs that have failed or were stopped, where `also_unfinished`; never of those that are running.

    Returns:
        Segments, and for each of the others its run directory and why. A segment that is uploaded is in neither.
    """
    ready, later = [], []
    for segment in sorted(root.glob("**/wandb/offline-run-*")):
        (run, *_), files = segment.parents[1:], sorted(segment.glob("*.wandb"))
        if not files or all(file.with_name(file.name + ".synced").exists() for file in files):
            continue  # `wandb sync` leaves that file beside what it has uploaded
        state = "running" if is_held(run) else state_of(run)
        if state == "finished" and (run / UNSHOWN).exists():
            state = "finished, but not its W&B run, whose end was cut short: start it again"
        if state == "finished" or (also_unfinished and state != "running"):
            ready.append(segment)
        else:
            later.append((run, state))
    return ready, later


def upload(segment: Path) -> str | None:
    """Upload one segment, and say what went wrong, if anything."""
    # -P: this file's directory holds modules that would hide packages.
    command = [sys.executable, "-P", "-m", "wandb", "sync", str(segment)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"no end after {PATIENCE} s"
    if done.returncode == 0 and list(segment.glob("*.wandb.synced")):
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return " ".join(lines[-2:]) or f"status {done.returncode}"


def command(argv: list[str]) -> int:
    """Read a command line and upload."""
    parser = argparse.ArgumentParser(description="Upload W&B runs that were recorded offline, and have finished.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("outputs"), help="such as outputs")
    parser.add_argument("--all", action="store_true", help="also runs that have failed or were stopped")
    parser.add_argument("--dry-run", action="store_true", help="only list them")
    arguments = parser.parse_args(argv)
    if not os.path.isdir(arguments.directory):
        raise ConfigError(f"{arguments.directory}: there is no such directory.")
    ready, later = find(arguments.directory, arguments.all)
    failed = 0
    for number, segment in enumerate(ready, start=1):
        trouble = None if arguments.dry_run else upload(segment)
        failed += trouble is not None
        word = "FAILED    " if trouble else "ready     " if arguments.dry_run else "uploaded  "
        print(f"{word} [{number}/{len(ready)}] {segment}{f': {trouble}' if trouble else ''}", flush=True)
        if trouble and number == 1:  # no key, no network: the others would wait for the same
            print(f"stopped    at the first of {len(ready)}, which failed.", file=sys.stderr)
            return 1
    for run, state in later:
        print(f"not yet    {run}: {state}")
    if not ready:
        print(f"nothing    to upload in {arguments.directory}")
    return int(failed > 0)
