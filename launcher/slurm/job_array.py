"""A grid as one SLURM job array: submitted and left alone. Each task trains one point, and comes back if preempted."""

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
    Point,
    again,
    base_of,
    check_count,
    compose_points,
    directory_of,
    key_of,
    lock_grid,
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
                raise ConfigError(f"cluster.{name}: the grid sets this option of sbatch itself.")
            if isinstance(value, dict | list) or re.search(r"[\x00-\x1f]", str(value)):
                raise ConfigError(f"cluster.{name}={value}: must be a number, a text of one line, true, false or null.")

    @property
    def world(self) -> int:
        """Processes of a point, as far as that is known before it runs."""
        per_node = self.cluster.get("ntasks_per_node") or self.cluster.get("gpus_per_node") or 1
        found = re.search(r"\d+$", str(per_node))
        return int(self.cluster.get("nodes") or 1) * (int(found[0]) if found else 1)

    def place(self, settings: Any) -> tuple[str, int | str]:
        """Where a point will run, and on how many CPU threads: its node will tell."""
        return "slurm", settings.threads


def submit(
    task: composition.Task, master: Any, job_overrides: Sequence[Sequence[str]], first: int, options: Options
) -> list[Point]:
    """Check all points, and submit those that are neither done nor under way.

    Args:
        task: Composes a point.
        master: The grid's own config, as Hydra composed it.
        job_overrides: Of each point.
        first: Number of the first.
        options: Of the launcher.

    Returns:
        The points; as they ended where `wait` is set, none with `dry_run`.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses; nothing has been submitted, and no directory made.
    """
    options.check()
    check_count(len(job_overrides), options.max_points)
    keys = {key_of(override) for overrides in job_overrides for override in overrides}
    for key in sorted(key for key in keys if key == "cluster" or key.startswith("cluster.")):
        if len({o for overrides in job_overrides for o in overrides if key_of(o) == key}) > 1:
            raise ConfigError(f"{key}: cannot be swept, since all points of a job array have the same options.")
    path = directory_of(master)
    lock = lock_grid(path) if (path / LOCK).exists() else None
    base = base_of(task, master, path)
    points = list(compose_points(task, master, job_overrides, first, options, path))
    try:
        active = in_queue(path)
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=slurm: SLURM does not say which points are queued ({error}).") from error
    todo = []
    for point in points:
        if point.state != "finished":
            point.state = active.get(_name(point, path)) or (
                "running" if run_directory.is_held(point.path) else point.state
            )
            if point.state not in ("queued", "running"):
                todo.append(point)
    words = {"finished": "finished before", "queued": "queued", "running": "running", "failed": "to try again",
             "stopped": "to resume", "interrupted": "to resume", "new": "new"}  # fmt: skip
    states = [words[point.state] for point in points]
    counts = [f"{states.count(word)} {word}" for word in dict.fromkeys(words.values()) if word in states]
    print(f"grid       {os.path.relpath(path)}: {', '.join(counts)}", flush=True)
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
        lock = lock_grid(path) if lock is None else lock
        _submit(path, submission, command, script, code, todo, options)
        remember(path, master, points, base)
    elif options.dry_run:
        return []
    if lock is not None:
        os.close(lock)
    if options.wait:
        _wait(task, path, points)
    if options.wait or not todo:
        from launcher.sweep import comparison

        comparison.conclude(path, options.metric, options.metric_mode)
    else:
        _say(f"results    launcher compare {quote([os.path.relpath(path)])}")
        _say(f"again      submits what has failed or is left by then:\n  {again(path)}")
    return points


def _name(point: Point, path: Path) -> str:
    return str(point.path.relative_to(path))


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
    """slurm/train.sbatch without its options for sbatch, told which point to train, by which code."""
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))

    def quoted(place: Path) -> str:
        return quote([str(place)])

    head = [
        "#!/bin/bash",
        "# Points of a grid, one for each task of the array; the rest is slurm/train.sbatch. Submitted as",
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
                f"The grid has {count:,} points to submit, and this SLURM takes arrays of {found[1]} (MaxArraySize): "
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
    todo: Sequence[Point],
    options: Options,
) -> None:
    submission.mkdir(parents=True)
    try:
        left_out = snapshot.take(code, path)
        site = Path(os.environ.get("SITE", "slurm/site.sh"))
        (submission / "site.sh").write_bytes(site.read_bytes() if site.is_file() else b"")
        (submission / "script.sh").write_text(script, encoding="utf-8")
        (submission / "tasks").mkdir()
        for number, point in enumerate(todo):
            point.path.mkdir(parents=True, exist_ok=True)
            settings, hydra, overrides = point.unpacked()
            content = {
                "run_dir": str(point.path),
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
    # At once: from here on the same command must not submit these points again.
    write_json(submission / "job.json", {"job": job, "points": [_name(point, path) for point in todo]})
    for number, point in enumerate(todo):
        point.state = "queued"
        record = {"job": f"{job}_{number}", "submission": str(submission), "snapshot": bool(code.trees), **asdict(code)}
        write_json(point.path / SUBMITTED, record | {"left_out": left_out})
    limit = f", at most {options.max_parallel} at once" if options.max_parallel else ""
    _say(f"submitted  {len(todo)} points as job array {job}{limit} (squeue --jobs {job}; scancel {job})")
    if code.trees:
        _say(f"code       {os.path.relpath(code.code)}: what you edit from now on does not reach these jobs")
    if left_out:
        _say(f"warning    not copied, being larger than 20 MB: {', '.join(left_out)}")


@dataclass
class _Running:
    point: Point
    started: float


class _View:
    """What the board shows of a grid."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points, self.running = points, list[_Running]()


def _wait(task: composition.Task, path: Path, points: Sequence[Point]) -> None:
    """Show the points until none is queued or running; a signal ends the waiting alone, not the jobs."""
    from launcher.distributed.stopping import StopRequest
    from launcher.sweep.board import Board

    task.stop = StopRequest(None, 0) if task.stop is None else task.stop
    display = Board(len(points), sum(point.state == "finished" for point in points))
    view: Any = _View(points)
    started: dict[int, float] = {}
    try:
        while not task.stop and (waiting := [p for p in points if p.state in ("queued", "running")]):
            try:
                active = in_queue(path)
            except RuntimeError as error:  # a controller that restarts
                display.note(f"waiting    {error}")
                active = {_name(point, path): point.state for point in waiting}
            for point in waiting:
                was, now = point.state, active.get(_name(point, path))
                if now is None and run_directory.is_held(point.path):
                    now = "running"
                point.state = now or state_of(point.path)
                if now == "running":
                    started.setdefault(point.index, time.monotonic())
                    if was == "queued":
                        display.say(point, "runs")
                elif now is None:
                    reason = read_json(point.path / FAILED).get("reason", "")
                    point.reason = str(reason) if point.state == "failed" else ""
                    if point.state != "finished":  # cancelled, or out of time without a requeue
                        point.reason, point.state = point.reason or f"{point.state}: its job ended", "failed"
                    display.ended(point, time.monotonic() - started.get(point.index, time.monotonic()))
            view.running = [_Running(p, started[p.index]) for p in points if p.state == "running"]
            display.update(view)
            time.sleep(min(POLL, 1.0) if len(waiting) < 20 else POLL)
    finally:
        display.close()
    if task.stop:
        _say(f"left       ({task.stop.reason}): the jobs go on. To wait again:\n  {again(path)}")
    for point in points:
        if point.state == "failed":
            print(f"FAILED     point {point.index} ({point.label}): {point.reason}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, flush=True)
