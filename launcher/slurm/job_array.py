"""A sweep as one SLURM job array: submitted and left alone. Each task trains one trial, and comes back if preempted."""

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import launcher
from launcher.config import composition
from launcher.config.places import make_directory
from launcher.config.rules import FLAG, TEXT, one_of, whole
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json
from launcher.distributed import slurm
from launcher.run import run_directory
from launcher.run.command_line import config_options
from launcher.slurm import snapshot
from launcher.slurm.job import quote, sbatch_options, submission_environment
from launcher.sweep.failure import FAILED, OUTPUT
from launcher.sweep.submissions import SUBMISSIONS, in_queue
from launcher.sweep.trials import (
    LOCK,
    Trial,
    again,
    base_of,
    check_count,
    compose_trials,
    directory_of,
    key_of,
    lock_sweep,
    remember,
    state_of,
)

PACKAGE = Path(launcher.PACKAGE)
TEMPLATE = next(file for file in (PACKAGE / "train.sbatch", PACKAGE.parent / "slurm/train.sbatch") if file.exists())
SUBMITTED = "submitted.json"  # in the directory of a run: the job and the code
POLL = 5.0  # seconds between two questions to SLURM while waiting
OURS = ("array", "chdir", "error", "output", "parsable", "test_only", "wait", "wrap")  # options of sbatch set here


@dataclass
class Options:
    """The settings of conf/hydra/launcher/slurm.yaml, and of conf/cluster/."""

    max_parallel: int | None
    max_points: int
    max_requeues: int
    snapshot: bool
    wait: bool
    dry_run: bool
    metric: str | None
    metric_mode: str | None
    cluster: dict[str, Any]

    def check(self) -> None:
        """Check what SLURM does not.

        Raises:
            ConfigError: A setting is wrong.
        """
        rules = {
            "max_parallel": whole(1).or_null(),
            "max_points": whole(1),
            "max_requeues": whole(0),
            "snapshot": FLAG,
            "wait": FLAG,
            "dry_run": FLAG,
            "metric": TEXT.or_null(),
            "metric_mode": one_of("min", "max").or_null(),
        }
        for name, rule in rules.items():
            if not rule.fits(value := getattr(self, name)):
                raise ConfigError(f"hydra.launcher.{name}={value}: must be {rule.words}.")
        for name, value in self.cluster.items():
            if name in OURS:
                raise ConfigError(f"cluster.{name}: the sweep sets this option of sbatch itself.")
            if isinstance(value, dict | list) or re.search(r"[\x00-\x1f]", str(value)):
                raise ConfigError(f"cluster.{name}={value}: must be a number, a text of one line, true, false or null.")

    @property
    def world(self) -> int:
        """Processes of a trial, as far as that is known before it runs."""
        per_node = self.cluster.get("ntasks_per_node") or self.cluster.get("gpus_per_node") or 1
        found = re.search(r"\d+$", str(per_node))
        return int(self.cluster.get("nodes") or 1) * (int(found[0]) if found else 1)

    def place(self, settings: Any) -> tuple[str, int | str]:
        """Where a trial will run, and on how many CPU threads: its node will tell."""
        return "slurm", settings.threads


def submit(
    task: composition.Task, master: Any, job_overrides: Sequence[Sequence[str]], first: int, options: Options
) -> list[Trial]:
    """Check all trials, and submit those that are neither done nor under way.

    Args:
        task: Composes a trial.
        master: The sweep's own config, as Hydra composed it.
        job_overrides: Of each trial.
        first: Number of the first.
        options: Of the launcher.

    Returns:
        The trials; as they ended where `wait` is set, none with `dry_run`.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses; nothing has been submitted, and no directory made.
    """
    options.check()
    check_count(len(job_overrides), options.max_points)
    keys = {key_of(override) for overrides in job_overrides for override in overrides}
    for key in sorted(key for key in keys if key == "cluster" or key.startswith("cluster.")):
        if len({o for overrides in job_overrides for o in overrides if key_of(o) == key}) > 1:
            raise ConfigError(f"{key}: cannot be swept, since all trials of a job array have the same options.")
    path = directory_of(master)
    lock = lock_sweep(path) if (path / LOCK).exists() else None
    base = base_of(task, master, path)
    trials = list(compose_trials(task, master, job_overrides, first, options, path))
    try:
        active = in_queue(path)
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=slurm: SLURM does not say which trials are queued ({error}).") from error
    todo = []
    for trial in trials:
        if trial.state != "finished":
            trial.state = active.get(_name(trial, path)) or (
                "running" if run_directory.is_held(trial.path) else trial.state
            )
            if trial.state not in ("queued", "running"):
                todo.append(trial)
    words = {"finished": "finished before", "queued": "queued", "running": "running", "failed": "to try again",
             "stopped": "to resume", "interrupted": "to resume", "new": "new"}  # fmt: skip
    states = [words[trial.state] for trial in trials]
    counts = [f"{states.count(word)} {word}" for word in dict.fromkeys(words.values()) if word in states]
    print(f"sweep      {os.path.relpath(path)}: {', '.join(counts)}", flush=True)
    if todo:
        submission = _next_submission(path)
        command = _command(path, submission, len(todo), options)
        code = snapshot.plan(submission / "code") if options.snapshot else snapshot.none()
        script = _script(submission, command, Path(code.code), options)
        answer = _check_with_slurm(command, script, len(todo))
        if options.dry_run:
            _say(f"{script}\nnothing is submitted (hydra.launcher.dry_run=true). {answer}")
            return []
        make_directory(path, "hydra.sweep.dir")
        lock = lock_sweep(path) if lock is None else lock
        _submit(path, submission, command, script, code, todo, options)
        remember(path, master, trials, base)
    elif options.dry_run:
        return []
    if lock is not None:
        os.close(lock)
    if options.wait:
        _wait(task, path, trials)
    if options.wait or not todo:
        from launcher.sweep import comparison

        comparison.conclude(path, options.metric, options.metric_mode)
    else:
        _say(f"results    launcher compare {quote([os.path.relpath(path)])}")
        _say(f"again      submits what has failed or is left by then:\n  {again(path)}")
    return trials


def _name(trial: Trial, path: Path) -> str:
    return str(trial.path.relative_to(path))


def _next_submission(path: Path) -> Path:
    numbers = [int(place.name) for place in path.glob(f"{SUBMISSIONS}/*") if place.name.isdigit()]
    return path / SUBMISSIONS / str(max(numbers, default=0) + 1)


def _command(path: Path, submission: Path, count: int, options: Options) -> list[str]:
    """How the script is submitted. Options here count more than SBATCH_PARTITION and the like in the environment."""
    limit = f"%{options.max_parallel}" if options.max_parallel else ""
    log = str(submission / "%a.log").replace("%", "%%").replace("%%a.log", "%a.log")
    settings = {"job_name": path.name, **options.cluster}
    own = ["sbatch", "--parsable", f"--array=0-{count - 1}{limit}", f"--output={log}"]
    return [*own, *sbatch_options(settings), str(submission / "script.sh")]


def _script(submission: Path, command: Sequence[str], code: Path, options: Options) -> str:
    """slurm/train.sbatch without its options for sbatch, told which trial to train, by which code."""
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))

    def quoted(place: Path) -> str:
        return quote([str(place)])

    head = [
        "#!/bin/bash",
        "# Trials of a sweep, one for each task of the array; the rest is slurm/train.sbatch. Submitted as",
        f"# {quote(command)}",
        "",
        f"LAUNCHER_CODE={quoted(code)}",
        'ENTRY="$LAUNCHER_CODE/launcher/trial.py"',
        f"LAUNCHER_LOG={OUTPUT}",
        f"MAX_REQUEUES={options.max_requeues}",
        f"SITE={quoted(submission / 'site.sh')}",
        f'set -- --task {quoted(submission / "tasks")}/"$SLURM_ARRAY_TASK_ID".json',
    ]
    return "\n".join([*head, *lines[last + 1 :]]) + "\n"


def _check_with_slurm(command: list[str], script: str, count: int) -> str:
    """Ask SLURM whether it would take a script, and what it says to it.

    Raises:
        ConfigError: It would not, or there is no SLURM here.
    """
    try:
        config_text = slurm.ask("scontrol", "show", "config")
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config_text, re.M)
        if found and count > int(found[1]):
            raise ConfigError(
                f"The sweep has {count:,} trials to submit, and this SLURM takes arrays of {found[1]} (MaxArraySize): "
                f"hydra.sweeper.max_batch_size={found[1]} makes several of them."
            )
        environment = submission_environment(os.environ)
        words = [*command[:-1], "--test-only"]
        return slurm.ask(*words, stdin=script, environment=environment, with_errors=True).strip()
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=slurm, cluster: SLURM does not take this job. {error}") from error


def _submit(
    path: Path,
    submission: Path,
    command: list[str],
    script: str,
    code: snapshot.Snapshot,
    todo: Sequence[Trial],
    options: Options,
) -> None:
    submission.mkdir(parents=True)
    try:
        left_out = snapshot.take(code, path)
        site = Path(os.environ.get("SITE", "slurm/site.sh"))
        (submission / "site.sh").write_bytes(site.read_bytes() if site.is_file() else b"")
        (submission / "script.sh").write_text(script, encoding="utf-8")
        (submission / "tasks").mkdir()
        for number, trial in enumerate(todo):
            trial.path.mkdir(parents=True, exist_ok=True)
            settings, hydra, overrides = trial.unpacked()
            content = {
                "run_dir": str(trial.path),
                "overrides": overrides,
                "settings": OmegaConf.to_yaml(OmegaConf.create(settings)),
                "hydra": OmegaConf.to_yaml(OmegaConf.create(hydra)),
                "command": launcher.command,
                "started": [sys.argv[0], *config_options(sys.argv[1:])],
                "trees": code.trees,
                "commit": code.commit if code.trees else None,
            }
            write_json(submission / "tasks" / f"{number}.json", content)
        environment = submission_environment(os.environ)
        job = slurm.ask(*command, environment=environment).strip().partition(";")[0]
    except BaseException:
        shutil.rmtree(submission, ignore_errors=True)
        raise
    # At once: from here on the same command must not submit these trials again.
    write_json(submission / "job.json", {"job": job, "points": [_name(trial, path) for trial in todo]})
    for number, trial in enumerate(todo):
        trial.state = "queued"
        record = {"job": f"{job}_{number}", "submission": str(submission), "snapshot": bool(code.trees), **asdict(code)}
        write_json(trial.path / SUBMITTED, record | {"left_out": left_out})
    limit = f", at most {options.max_parallel} at once" if options.max_parallel else ""
    _say(f"submitted  {len(todo)} trials as job array {job}{limit} (squeue --jobs {job}; scancel {job})")
    if code.trees:
        _say(f"code       {os.path.relpath(code.code)}: what you edit from now on does not reach these jobs")
    if left_out:
        _say(f"warning    not copied, being larger than 20 MB: {', '.join(left_out)}")


@dataclass
class _Running:
    trial: Trial
    started: float


class _View:
    """What the board shows of a sweep."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials, self.running = trials, list[_Running]()


def _wait(task: composition.Task, path: Path, trials: Sequence[Trial]) -> None:
    """Show the trials until none is queued or running; a signal ends the waiting alone, not the jobs."""
    from launcher.distributed.stopping import StopRequest
    from launcher.sweep.board import Board

    task.stop = StopRequest(None, 0) if task.stop is None else task.stop
    display = Board(len(trials), sum(trial.state == "finished" for trial in trials))
    view: Any = _View(trials)
    started: dict[int, float] = {}
    try:
        while not task.stop and (waiting := [p for p in trials if p.state in ("queued", "running")]):
            try:
                active = in_queue(path)
            except RuntimeError as error:  # a controller that restarts
                display.note(f"waiting    {error}")
                active = {_name(trial, path): trial.state for trial in waiting}
            for trial in waiting:
                was, now = trial.state, active.get(_name(trial, path))
                if now is None and run_directory.is_held(trial.path):
                    now = "running"
                trial.state = now or state_of(trial.path)
                if now == "running":
                    started.setdefault(trial.index, time.monotonic())
                    if was == "queued":
                        display.say(trial, "runs")
                elif now is None:
                    reason = read_json(trial.path / FAILED).get("reason", "")
                    trial.reason = str(reason) if trial.state == "failed" else ""
                    if trial.state != "finished":  # cancelled, or out of time without a requeue
                        trial.reason, trial.state = trial.reason or f"{trial.state}: its job ended", "failed"
                    display.ended(trial, time.monotonic() - started.get(trial.index, time.monotonic()))
            view.running = [_Running(p, started[p.index]) for p in trials if p.state == "running"]
            display.update(view)
            time.sleep(min(POLL, 1.0) if len(waiting) < 20 else POLL)
    finally:
        display.close()
    if task.stop:
        _say(f"left       ({task.stop.reason}): the jobs go on. To wait again:\n  {again(path)}")
    for trial in trials:
        if trial.state == "failed":
            print(f"FAILED     trial {trial.index} ({trial.label}): {trial.reason}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, flush=True)
