"""A sweep as one SLURM job array: submitted and left alone. Each task trains one trial, and comes back if preempted."""

import os
import re
import shutil
import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.distributed import slurm_commands
from launcher.run.lock import is_held
from launcher.slurm import snapshot
from launcher.slurm.job import quote, sbatch_options, submission_environment
from launcher.slurm.snapshot import PACKAGE
from launcher.slurm.task_file import write_job, write_task
from launcher.sweep import failure
from launcher.sweep.conclusion import conclude
from launcher.sweep.feed import Feed
from launcher.sweep.options import LauncherOptions
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.sweep import Sweep
from launcher.sweep.sweep_directory import SweepDirectory
from launcher.sweep.trial_state import State
from launcher.sweep.trials import TRAINING, Trial, in_queue, next_submission, varying_keys

TEMPLATE = next(file for file in (PACKAGE / "train.sbatch", PACKAGE.parent / "slurm/train.sbatch") if file.exists())
SUBMITTED = "submitted.json"  # in the directory of a run: the job and the code
POLL = 5.0  # seconds between two questions to SLURM while waiting
OURS = ("array", "chdir", "error", "output", "parsable", "test_only", "wait", "wrap")  # options of sbatch set here
UNDER_WAY = (State.QUEUED, State.RUNNING)


@dataclass
class ArrayOptions(LauncherOptions):
    """The settings of conf/hydra/launcher/slurm.yaml, and of conf/cluster/."""

    max_requeues: int
    snapshot: bool
    wait: bool
    dry_run: bool
    cluster: dict[str, Any]

    SCHEMA = "SlurmSweep"
    OPTION, SECTION = "slurm", "cluster"  # of hydra/launcher, and what the options of sbatch are called

    def check(self) -> None:
        """Check what SLURM does not; see LauncherOptions."""
        super().check()
        for name, value in self.cluster.items():
            if name in OURS:
                raise ConfigError(f"{self.SECTION}.{name}: the sweep sets this option of sbatch itself.")
            if isinstance(value, dict | list) or re.search(r"[\x00-\x1f]", str(value)):
                raise ConfigError(
                    f"{self.SECTION}.{name}={value}: must be a number, a text of one line, true, false or null."
                )

    @property
    def world(self) -> int:
        """See LauncherOptions."""
        per_node = self.cluster.get("ntasks_per_node") or self.cluster.get("gpus_per_node") or 1
        found = re.search(r"\d+$", str(per_node))
        return int(self.cluster.get("nodes") or 1) * (int(found[0]) if found else 1)

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions: its node will tell."""
        return "slurm", settings.threads


def run_sweep(sweep: Sweep, job_overrides: Sequence[Sequence[str]], first: int, options: ArrayOptions) -> list[Trial]:
    """Check all trials, the number of the first being `first`, and submit those that are neither done nor under way.

    Returns:
        The trials; as they ended where `wait` is set, none with `dry_run`.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses; nothing has been submitted, and no directory made.
    """
    _refuse_swept_options(varying_keys(job_overrides))
    list(sweep.compose(job_overrides, first))
    submitted = submit_rest(sweep, options)
    if submitted is None:
        return []
    if options.wait or not submitted:
        conclude(sweep.path, options.metric, options.metric_mode)
    else:
        _say(f"results    launcher compare {quote(os.path.relpath(sweep.path))}")
        _say(f"again      submits what has failed or is left by then:\n  {sweep.command()}")
    return sweep.trials


def submit_rest(sweep: SweepDirectory, options: ArrayOptions) -> int | None:
    """Submit those of a sweep's trials that are neither done nor under way, and wait for all where that is asked for.

    Returns:
        How many were submitted; None with `dry_run`.

    Raises:
        ConfigError: SLURM refuses; nothing has been submitted, and no directory made.
    """
    to_submit = _left_to_do(sweep, sweep.trials)
    sweep.print_counts()
    if to_submit:
        submission = Submission(sweep, options, to_submit)
        if _is_tried_only(submission):
            return None
        sweep.begin()
        submission.submit()
        sweep.remember()
    elif options.dry_run:
        return None
    sweep.release()
    if options.wait:
        _wait(sweep)
    return len(to_submit)


def run_feed(sweep: Sweep, feed: Feed, options: ArrayOptions) -> list[Trial]:
    """Check a feed, then submit what it chooses, as many trials at once as may be, until it is over.

    Returns:
        The trials that it knew of.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses; nothing has been submitted, and no directory made.
    """
    if not options.wait or options.max_parallel is None:
        raise ConfigError(
            "hydra/launcher=slurm: trials that are chosen by the results of those before are submitted one by one, by "
            "a process that stays. Add hydra.launcher.wait=true, and hydra.launcher.max_parallel=4 for so many at once."
        )
    _refuse_swept_options(feed.varying)
    if _is_tried_only(Submission(sweep, options, [feed.check()])):
        return []
    sweep.begin()
    feed.open()
    _say(f"sweep      {os.path.relpath(sweep.path)}: {feed}")
    _wait(sweep, feed)
    feed.close()
    sweep.release()
    conclude(sweep.path, *feed.compared_by)
    return sweep.trials


def _refuse_swept_options(varying: Set[str]) -> None:
    for key in sorted(varying):
        if key == "cluster" or key.startswith("cluster."):
            raise ConfigError(f"{key}: cannot be swept, since all trials of a job array have the same options.")


def _is_tried_only(submission: "Submission") -> bool:
    """Let SLURM look at a submission; where no more is wanted, show the script and what it says."""
    answer = submission.check()
    if submission.options.dry_run:
        _say(f"{submission.script}\nnothing is submitted (hydra.launcher.dry_run=true). {answer}")
    return submission.options.dry_run


class Chosen:
    """What a feed has chosen, submitted as it comes; all of it by the code as it was when this began."""

    def __init__(self, sweep: SweepDirectory, feed: Feed) -> None:
        self.sweep, self.feed = sweep, feed
        self.code: snapshot.Snapshot | None = None
        self.left = _left_to_do(sweep, feed.waiting())  # of an earlier start

    def submit(self, under_way: int) -> None:
        """Submit, as one array, as many trials as may run beside those that do."""
        options: Any = self.sweep.options
        room = options.max_parallel - under_way
        chosen, self.left = self.left[:room], self.left[room:]
        while len(chosen) < room and not self.left and (trial := self.feed.next()) is not None:
            chosen.append(trial)
        if chosen:
            submission = Submission(self.sweep, options, chosen, self.code)
            submission.submit()
            self.code = submission.code


def _left_to_do(sweep: SweepDirectory, trials: Sequence[Trial]) -> list[Trial]:
    """Those that are neither finished, nor queued, nor running; of the others their states are noted."""
    try:
        active = in_queue(sweep.path)
    except RuntimeError as error:
        option = f"hydra/launcher={getattr(sweep.options, 'OPTION', 'slurm')}"
        raise ConfigError(f"{option}: SLURM does not say which trials are queued ({error}).") from error
    unfinished = [trial for trial in trials if trial.state != State.FINISHED]
    for trial in unfinished:
        _note(trial, active.get(sweep.name_of(trial)))
        if trial.state not in UNDER_WAY:  # it may have run when its files were read, and have ended since
            trial.lifecycle.look(trial.found())
    return [trial for trial in unfinished if trial.state not in (*UNDER_WAY, State.FINISHED)]


def _note(trial: Trial, in_queue: State | None) -> None:
    """Note whether a trial is under way: by the queue of SLURM, or by its locked run directory."""
    now = in_queue or (State.RUNNING if is_held(trial.path) else None)
    if now == trial.state:
        return
    if now == State.QUEUED:
        trial.lifecycle.queue()
    elif now == State.RUNNING:
        trial.lifecycle.start()
    elif trial.state in UNDER_WAY:
        trial.lifecycle.end(trial.found())


class Submission:
    """Trials of a sweep that become one job array; of `code`, where another submission has copied it."""

    def __init__(
        self,
        sweep: SweepDirectory,
        options: ArrayOptions,
        trials: Sequence[Trial],
        code: snapshot.Snapshot | None = None,
    ) -> None:
        self.sweep, self.options, self.trials = sweep, options, trials
        self.directory = next_submission(sweep.path)
        self.copies = code is None
        plan = snapshot.plan(self.directory / "code") if options.snapshot else snapshot.none()
        self.code = plan if code is None else code

    @cached_property
    def command(self) -> list[str]:
        """How the script is submitted, without its name; SBATCH_PARTITION and the like count less than options."""
        limit = f"%{self.options.max_parallel}" if self.options.max_parallel else ""
        log = str(self.directory / "%a.log").replace("%", "%%").replace("%%a.log", "%a.log")
        settings = {"job_name": self.sweep.path.name, **self.options.cluster}
        own = ["sbatch", "--parsable", f"--array=0-{len(self.trials) - 1}{limit}", f"--output={log}"]
        return [*own, *sbatch_options(settings)]

    @cached_property
    def script(self) -> str:
        """slurm/train.sbatch without its options for sbatch, told which trial to train, by which code."""
        lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
        file = self.directory / "script.sh"
        head = [
            "#!/bin/bash",
            "# Trials of a sweep, one for each task of the array; the rest is slurm/train.sbatch. Submitted as",
            "# " + " ".join(map(quote, [*self.command, str(file)])),
            "",
            f"LAUNCHER_CODE={quote(self.code.code)}",
            'ENTRY="$LAUNCHER_CODE/launcher/trial.py"',
            f"LAUNCHER_LOG={failure.OUTPUT}",
            f"MAX_REQUEUES={self.options.max_requeues}",
            f"SITE={quote(str(self.directory / 'site.sh'))}",
            f'set -- --task {quote(str(self.directory / "tasks"))}/"$SLURM_ARRAY_TASK_ID".json',
        ]
        return "\n".join([*head, *lines[last + 1 :]]) + "\n"

    def check(self) -> str:
        """What SLURM says to the script, which it only looks at; a ConfigError where it would not take it."""
        count = len(self.trials)
        try:
            most = slurm_commands.largest_array()
            if most is not None and count > most:
                raise ConfigError(
                    f"The sweep has {count:,} trials to submit, and this SLURM takes arrays of {most} (MaxArraySize): "
                    f"hydra.sweeper.max_batch_size={most} makes several of them."
                )
            return slurm_commands.try_submission(self.command, self.script, submission_environment(os.environ))
        except RuntimeError as error:
            where = f"hydra/launcher={self.options.OPTION}, {self.options.SECTION}"
            raise ConfigError(f"{where}: SLURM does not take this job. {error}") from error

    def submit(self) -> None:
        """Copy the code, write down what each task needs, and submit it; or leave nothing."""
        self.directory.mkdir(parents=True)
        try:
            left_out = self._write_files()
            command = [*self.command, str(self.directory / "script.sh")]
            job = slurm_commands.submit(command, submission_environment(os.environ))
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        # At once: from here on the same command must not submit these trials again.
        names = [self.sweep.name_of(trial) for trial in self.trials]
        write_json(self.directory / "job.json", {"job": job, "points": names})
        copied = bool(self.code.trees)
        for number, trial in enumerate(self.trials):
            trial.lifecycle.queue()
            record = {"job": f"{job}_{number}", "submission": str(self.directory), "snapshot": copied}
            write_json(trial.path / SUBMITTED, record | asdict(self.code) | {"left_out": left_out})
        most = self.options.max_parallel
        limit = f", at most {most} at once" if most else ""
        _say(f"submitted  {len(names)} trials as job array {job}{limit} (squeue --jobs {job}; scancel {job})")
        if copied and self.copies:
            _say(f"code       {os.path.relpath(self.code.code)}: what you edit from now on does not reach these jobs")
        if left_out:
            _say(f"warning    not copied, being larger than 20 MB: {', '.join(left_out)}")

    def _write_files(self) -> list[str]:
        """Write the script, the code and the tasks; returns the files that are too large for code."""
        left_out = snapshot.take(self.code, self.sweep.path) if self.copies else []
        site = Path(os.environ.get("SITE", "slurm/site.sh"))
        (self.directory / "site.sh").write_bytes(site.read_bytes() if site.is_file() else b"")
        (self.directory / "script.sh").write_text(self.script, encoding="utf-8")
        (self.directory / "tasks").mkdir()
        for number, trial in enumerate(self.trials):
            trial.path.mkdir(parents=True, exist_ok=True)
            if trial.program is TRAINING:
                write_task(self.directory / "tasks" / f"{number}.json", trial, self.code)
            else:
                write_job(self.directory / "tasks", number, trial)
        return left_out


def _wait(sweep: SweepDirectory, feed: Feed | None = None) -> None:
    """Show the trials until none is queued or running; a signal ends the waiting alone, not the jobs."""
    stop = sweep.take_stop_requests()
    started: dict[int, float] = {}
    chosen = None if feed is None else Chosen(sweep, feed)
    with ProgressDisplay(sweep.trials, feed) as display:
        while not stop:
            if chosen is not None:
                chosen.submit(sum(trial.state in UNDER_WAY for trial in sweep.trials))
            if not (waiting := [trial for trial in sweep.trials if trial.state in UNDER_WAY]):
                break
            try:
                active = in_queue(sweep.path)
            except RuntimeError as error:  # a controller that restarts
                display.note(f"waiting    {error}")
                active = {sweep.name_of(trial): trial.state for trial in waiting}
            for trial in waiting:
                _follow(trial, active.get(sweep.name_of(trial)), started, display)
                if feed is not None and trial.state not in UNDER_WAY:
                    feed.ended(trial)
            display.update([(t, started[t.index]) for t in sweep.trials if t.state == State.RUNNING])
            time.sleep(min(POLL, 1.0) if len(waiting) < 20 else POLL)
    if stop:
        _say(f"left       ({stop.reason}): the jobs go on. To wait again:\n  {sweep.command()}")
    sweep.print_failures()


def _follow(trial: Trial, in_queue: State | None, started: dict[int, float], display: ProgressDisplay) -> None:
    """Note what has become of a trial that was queued or running, and say it."""
    was = trial.state
    _note(trial, in_queue)
    if trial.state == State.RUNNING:
        started.setdefault(trial.index, time.monotonic())
        if was == State.QUEUED:
            display.say(trial, "runs")
    elif trial.state != State.QUEUED:
        if trial.state not in (State.FINISHED, State.PRUNED):
            # Cancelled, or out of time without a requeue, where nothing says why.
            why = failure.reason_of(trial.path) if trial.state == State.FAILED else ""
            trial.lifecycle.fail(why or f"{trial.state}: its job ended")
        display.ended(trial, time.monotonic() - started.get(trial.index, time.monotonic()))


def _say(text: str) -> None:
    print(text, flush=True)
