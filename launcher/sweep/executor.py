"""A grid on this machine: every point in processes and on devices of its own, each once, whatever is killed."""

import contextlib
import functools
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

import launcher
from launcher.config import composition
from launcher.config.places import make_directory
from launcher.config.rules import TEXT, one_of, parse_duration, whole
from launcher.config.schema import FP16_ON_CPU
from launcher.core.errors import ConfigError
from launcher.distributed import children, gpus, process_group
from launcher.distributed.stopping import SIGNALS, StopRequest
from launcher.distributed.watch import exists
from launcher.run import run_directory
from launcher.sweep import devices, failure
from launcher.sweep.failure import FAILED, OUTPUT, said, tail
from launcher.sweep.trials import (
    LOCK,
    Point,
    again,
    base_of,
    check_count,
    compose_points,
    directory_of,
    lock_grid,
    remember,
    state_of,
)

log = logging.getLogger("launcher")

CONTEXT = multiprocessing.get_context("forkserver")
POLL = 0.2  # seconds between two looks at what no event tells: progress, hangs, devices of other grids
PEERS = 75.0  # seconds in which ranks end after one has failed: they need 2 (distributed/watch.py), or a minute to save
LOST = 255  # what multiprocessing says of a process whose parent, the one of all points, is dead
STOPPING = 60.0  # seconds in which a point that was asked to stop saves and ends

# --- The processes of a point --------------------------------------------------------------------------------------


def _rank(
    packed: bytes,
    command: str | None,
    environment: Mapping[str, str],
    own_cores: Sequence[int],
    output: str,
    leases: list[devices.Lease],
    figures: Any,
) -> None:
    """One process of a point, forked from the warm parent.

    Args:
        packed: Pickled (settings, Hydra's node, overrides).
        command: That the sweep was started as; see launcher.command.
        environment: The whole environment.
        own_cores: CPU cores to stay on; empty: anywhere.
        output: File that takes what it prints.
        leases: Of the point's devices: they are free when the last process of the point is gone.
        figures: [3] in shared memory, by which it tells that it moves on; see pulse.share.
    """
    os.setsid()
    parent = os.getppid()
    _end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if own_cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own_cores)
    if "launcher.sweep.preload" not in sys.modules:
        print("warning: this process was not started warm, which costs seconds", file=sys.stderr)
    from launcher.distributed.pulse import share

    # The story of a run stands above this room, which names it and does not import it.
    train_composed = importlib.import_module("launcher.trial").train_composed

    launcher.command = command
    share(figures)
    sys.exit(train_composed(*pickle.loads(packed)))


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent dies: stopping.py would notice, but runs only later."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _gpus(sender: Any, listed: list[gpus.Gpu] | None) -> None:
    sender.send(devices.visible_gpus(listed))


def _compare(path: str, metric: str | None, mode: str | None) -> None:
    from launcher.sweep import comparison

    comparison.conclude(Path(path), metric, mode)


def warm_up() -> None:
    """Start the parent of all points, which imports torch while the conductor goes on."""
    children.start_fork_server(["launcher.sweep.preload"])


def cool_down() -> None:
    """End the parent of all points, where one was started."""
    server = forkserver._forkserver
    if (pid := getattr(server, "_forkserver_pid", None)) is not None:
        os.kill(pid, signal.SIGKILL)  # it does not take another
        server._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _process(target: Callable[..., None], *args: Any) -> Any:
    """Start a process from the parent of all points, and that one anew where it was killed.

    It can die between two lines of `start`: its pipes close before it can be waited for.
    """
    last = 5
    for attempt in range(last + 1):
        warm_up()
        process = CONTEXT.Process(target=target, args=args)
        try:
            process.start()
            break
        except (OSError, EOFError):
            if attempt == last:
                raise
            time.sleep(0.1)
    return process


def environment_of_points() -> dict[str, str]:
    """The environment without the ranks of the grid's own launch, and without the threads that its launcher chose."""
    ours = {
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK",
        "ROLE_NAME", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "OMP_NUM_THREADS", "KMP_AFFINITY",
    }  # fmt: skip
    prefixes = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "PET_")
    found = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(prefixes)}
    threads = process_group.exported_threads()
    return found if threads is None else found | {"OMP_NUM_THREADS": str(threads)}


def _free_port(used: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = int(probe.getsockname()[1])
        if number not in used:
            used.add(number)
            return number


@dataclass
class Running:
    """A point whose processes are there."""

    point: Point
    ranks: list[Any]
    leases: list[devices.Lease]
    offset: int  # in its output, where this attempt begins
    started: float = field(default_factory=time.monotonic)
    first_failure: float | None = None  # of one of its ranks
    asked: float | None = None  # when it was asked to stop
    killed: str = ""  # why it was
    order: list[int] = field(default_factory=list)  # of the ranks as they ended
    sign: Any = None  # of life
    seen: float = field(default_factory=time.monotonic)
    used: float = 0.0  # CPU seconds at the last sign of life
    figures: list[Any] = field(default_factory=list)  # what each rank tells of its main thread; see pulse.share

    @property
    def patience(self) -> float:
        """Seconds in which it saves and ends when it is asked to."""
        return STOPPING + max((told[2] for told in self.figures), default=0.0)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each rank that is there."""
        for rank in self.ranks:
            if not _has_ended(rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, number)

    def kill(self, why: str) -> None:
        """End all ranks at once."""
        self.killed = self.killed or why
        self.send(signal.SIGKILL)


# --- The grid ------------------------------------------------------------------------------------------------------


class Grid:
    """Runs points until each is finished, failed, or the grid was asked to stop.

    Args:
        path: Directory of the grid.
        points: All of them, checked.
        pools: Devices by kind.
        limit: Most points at once; None: as many as there are devices for.
        max_time: Seconds that a point may take; None: any.
        display: Told each thing that a person should know, and shown now and then what is running.
    """

    def __init__(
        self,
        path: Path,
        points: Sequence[Point],
        pools: Mapping[str, devices.Pool],
        limit: int | None,
        max_time: float | None,
        display: Any,
    ) -> None:
        self.path, self.points, self.pools, self.display = path, list(points), pools, display
        self.limit, self.max_time = limit or len(self.points), max_time
        self.queue = [point for point in self.points if point.state != "finished"]
        self.running: list[Running] = []
        self.environment = environment_of_points()
        self.ports: set[int] = set()
        self.moved: dict[int, int] = {}  # starts that were no fault of the point's, by its index
        self.waited = 0.0

    def run(self, stop: StopRequest) -> None:
        """Run it to its end, or until it is asked to stop."""
        while self.running or (self.queue and not stop):
            if not stop:
                self._start_what_fits()
            self._wait()
            self._look_after(stop.reason)
            self.display.update(self)

    def _start_what_fits(self) -> None:
        blocked: set[str] = set()
        for point in list(self.queue):
            if len(self.running) >= self.limit:
                return
            if point.kind in blocked:
                continue
            if run_directory.is_held(point.path):  # left over from a conductor that was killed, or started alone
                if point.state != "waiting":
                    point.state = "waiting"
                    self.display.say(point, "waits for the run that is in its directory")
                continue
            if point.state == "waiting":
                point.state = state_of(point.path)
                if point.state == "finished":
                    self.queue.remove(point)
                    self.display.say(point, "finished, by another process")
                    continue
            leases = self.pools[point.kind].take(_devices_of(point, len(self.pools[point.kind])))
            if leases is None:
                blocked.add(point.kind)
                self._say_who_has_them(point.kind)
                continue
            self.queue.remove(point)
            self._start(point, leases)

    def _say_who_has_them(self, kind: str) -> None:
        late = not self.running and time.monotonic() - self.waited > 60
        if late and (holders := self.pools[kind].holders()):
            self.display.note(f"waiting    for devices that others hold ({', '.join(holders)})")
            self.waited = time.monotonic()

    def _start(self, point: Point, leases: list[devices.Lease]) -> None:
        pool, names = self.pools[point.kind], [lease.device for lease in leases]
        try:
            point.path.mkdir(parents=True, exist_ok=True)
            for stale in (FAILED, "stopped.json"):
                (point.path / stale).unlink(missing_ok=True)
        except OSError as error:
            pool.give_back(leases)
            point.state, point.reason = "failed", f"its directory cannot be written: {error.strerror}"
            self.display.ended(point, 0.0)
            return
        output = point.path / OUTPUT
        offset = output.stat().st_size if output.exists() else 0
        environment, own_cores = self.environment | {"LAUNCHER_DEVICES": ",".join(names)}, []
        if point.kind == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
            environment.pop("HIP_VISIBLE_DEVICES", None)
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
            every, slots = devices.cores(), list(pool.locks)
            own_cores = sorted({int(n) if n.isdigit() else every[slots.index(n) % len(every)] for n in names})
        if point.world > 1:
            environment |= {
                "WORLD_SIZE": str(point.world),
                "LOCAL_WORLD_SIZE": str(point.world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port(self.ports)),
            }
        run = Running(point, [], leases, offset)
        for rank in range(point.world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if point.world > 1 else {}
            run.figures.append(CONTEXT.RawArray("d", 3))
            arguments = (
                point.packed,
                launcher.command,
                environment | own,
                own_cores,
                str(output),
                leases,
                run.figures[-1],
            )
            run.ranks.append(_process(_rank, *arguments))
        run.started = run.seen = time.monotonic()
        was, point.state = point.state, "running"
        self.running.append(run)
        how = {"new": "started", "failed": "tried again"}.get(was, "resumed")
        self.display.say(point, f"{how} on {point.kind} {','.join(names)}")

    def _wait(self) -> None:
        sentinels = [rank.sentinel for run in self.running for rank in run.ranks if rank.exitcode is None]
        if sentinels:
            connection.wait(sentinels, timeout=POLL)
        else:
            time.sleep(POLL)

    def _look_after(self, stopping: str | None) -> None:
        now = time.monotonic()
        for run in list(self.running):
            for number, rank in enumerate(run.ranks):
                if number not in run.order and _has_ended(rank):
                    run.order.append(number)
                    if rank.exitcode != 0 and run.first_failure is None:
                        run.first_failure = now  # after a good end rank 0 may take its time, to send to W&B
            if len(run.order) == len(run.ranks):
                self.running.remove(run)
                self._ended(run, stopping)
                for rank in run.ranks:
                    rank.close()
            elif stopping and run.asked is None:
                run.asked = now
                run.send(signal.SIGTERM)
            elif run.asked is not None and now - run.asked > run.patience:
                run.kill(f"did not stop within {run.patience:.0f} s of being asked to")
            elif run.first_failure is not None and now - run.first_failure > PEERS:
                run.send(signal.SIGKILL)  # for the reason that the first one gave
            elif self.max_time is not None and run.asked is None and now - run.started > self.max_time:
                run.asked, run.killed = now, f"took longer than hydra.launcher.max_time_per_run ({self.max_time:g} s)"
                run.send(signal.SIGTERM)
            elif now - run.seen > run.point.timeout and not self._gives_sign(run):
                run.kill(f"hangs: it has not moved for {run.point.timeout:g} s (timeout)")
            elif now - run.seen > min(1.0, run.point.timeout / 4):
                self._gives_sign(run)

    def _gives_sign(self, run: Running) -> bool:
        """Whether a point did anything since it last gave a sign of life: wrote, or a main thread of it moved on.

        Until its first update it may also use a hundredth of a core: to prepare data takes one line of a library at
        times. Afterwards that says nothing: a process that waits for its GPU in vain spins.
        """
        files = [run.point.path / name for name in (OUTPUT, "metrics.jsonl", "timings.jsonl")]
        sign = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
        sign += [(int(told[0]), int(told[1])) for told in run.figures]
        used, now = sum(_cpu_seconds(rank.pid) for rank in run.ranks if not _has_ended(rank)), time.monotonic()
        works = used - run.used >= 0.01 * (now - run.seen) and not all(told[1] for told in run.figures)
        if sign == run.sign and not works:
            return False
        run.sign, run.used, run.seen = sign, used, now
        return True

    def _ended(self, run: Running, stopping: str | None) -> None:
        point, seconds = run.point, time.monotonic() - run.started
        self.pools[point.kind].give_back(run.leases)
        statuses = [rank.exitcode for rank in run.ranks]
        text = tail(point.path / OUTPUT, run.offset)
        asked = run.asked is not None or stopping is not None
        if not run.killed and all(status == 0 for status in statuses):
            point.state = state_of(point.path)
            self.display.ended(point, seconds)
        elif (
            asked
            and not run.killed
            and all(status in (0, -signal.SIGTERM, 128 + signal.SIGTERM, LOST) for status in statuses)
        ):
            point.state = state_of(point.path)  # of a point that had nothing to save yet: as before
            self.display.ended(point, seconds)
        elif (
            not stopping
            and self.moved.get(point.index, 0) < 3
            and ("EADDRINUSE" in text or (2 in statuses and "a run is in it" in text) or LOST in statuses)
        ):
            # Another took its port or its directory in between, or the parent of all points was killed.
            self.moved[point.index] = self.moved.get(point.index, 0) + 1
            point.state = state_of(point.path)
            self.queue.insert(0, point)
        else:
            point.state, point.reason = "failed", run.killed or _reason(statuses, run.order, text)
            more = {"first_rank": run.order[0], "seconds": round(seconds, 3), "overrides": point.overrides}
            try:
                failure.write(point.path, point.reason, statuses, text, **more)
            except OSError as error:  # a full disk may be what it failed of; the others go on
                self.display.say(point, f"{FAILED} cannot be written: {error.strerror}")
            self.display.ended(point, seconds)


def _devices_of(point: Point, there: int) -> int:
    """Devices that a point takes: on a CPU a core for each thread, as far as there are cores."""
    return point.world if point.kind == "gpu" else min(point.world * point.threads, there)


def _reason(statuses: Sequence[int | None], order: Sequence[int], text: str) -> str:
    """One line about a failure: what the first that failed said, else how it ended."""
    bad = next(rank for rank in order if statuses[rank] != 0)
    status = statuses[bad] or 0
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", perhaps by the system for lack of memory" if status == -signal.SIGKILL else ""
        return f"rank {bad} was killed by {name}{memory}"
    return said(text) or f"rank {bad} ended with exit status {status}"


def _has_ended(rank: Any) -> bool:
    """Whether a process is gone; that of a parent that died is asked for itself, since nobody else knows any more."""
    return rank.exitcode is not None and (rank.exitcode != LOST or not exists(rank.pid))


def _cpu_seconds(pid: int | None) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


# --- From the command line to a grid -------------------------------------------------------------------------------


@dataclass
class Options:
    """The settings of conf/hydra/launcher/local.yaml."""

    devices: str | int | list[Any]
    devices_per_run: str | int
    parallel: str | int
    max_parallel: int | None
    max_points: int
    max_time_per_run: str | float | None
    metric: str | None
    metric_mode: str | None

    def check(self) -> None:
        """Check what needs no device.

        Raises:
            ConfigError: A setting is wrong.
        """
        rules = {
            "devices_per_run": whole(1).or_word("auto"),
            "parallel": whole(1).or_word("auto"),
            "max_parallel": whole(1).or_null(),
            "max_points": whole(1),
            "metric": TEXT.or_null(),
            "metric_mode": one_of("min", "max").or_null(),
        }
        for name, rule in rules.items():
            if not rule.fits(value := getattr(self, name)):
                raise ConfigError(f"hydra.launcher.{name}={value}: must be {rule.words}.")
        try:
            parse_duration(self.max_time_per_run)
        except ConfigError as error:
            raise ConfigError(str(error).replace("max_time=", "hydra.launcher.max_time_per_run=")) from None

    @property
    def world(self) -> int:
        """Processes of a point."""
        if self.devices_per_run != "auto":
            return int(self.devices_per_run)
        return int(os.environ.get("WORLD_SIZE", "1"))

    def place(self, settings: Any) -> tuple[str, int | str]:
        """Where a point will run, and on how many CPU threads: as far as that is known before it does.

        Raises:
            ConfigError: It cannot run there.
        """
        kind = "cpu" if settings.device == "cpu" or not devices.may_have_gpus() else "gpu"
        if kind == "cpu" and settings.mixed_precision == "fp16":
            raise ConfigError(FP16_ON_CPU)
        threads = settings.threads
        if threads == "auto" and (threads := process_group.exported_threads()) is None:
            # Those that run at once share the cores: as many as may, or as there are GPUs for. On a CPU each takes one.
            limits = [limit for limit in (self.limit, self.fit_on_gpus if kind == "gpu" else None) if limit]
            threads = max(1, len(devices.cores()) // (self.world * min(limits))) if limits else 1
        return kind, threads

    @functools.cached_property
    def listed(self) -> list[gpus.Gpu] | None:
        """The GPUs of this machine, and what computes on them as the grid starts; None without an NVIDIA driver."""
        return gpus.look()

    @property
    def fit_on_gpus(self) -> int:
        """Points that the GPUs have room for at once, at least 1."""
        count = devices.count_gpus(self.listed)
        if isinstance(self.devices, list | int):
            count = len(self.devices) if isinstance(self.devices, list) else min(self.devices, count)
        return max(1, count // self.world)

    @property
    def limit(self) -> int | None:
        """Most points at once."""
        limits = [int(limit) for limit in (self.parallel, self.max_parallel) if isinstance(limit, int)]
        return min(limits) if limits else None


def conduct(
    task: composition.Task,
    master: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: Options,
) -> list[Point]:
    """Check all points, then run those that are not done yet.

    Args:
        task: Composes a point.
        master: The grid's own config, as Hydra composed it.
        job_overrides: Of each point.
        first: Number of the first.
        options: Of the launcher.

    Returns:
        The points as they ended.

    Raises:
        ConfigError: Something is wrong; no point has been started.
    """
    from launcher.sweep.board import Board

    options.check()
    check_count(len(job_overrides), options.max_points)
    ranks = process_group.join()
    if ranks.local_world_size != ranks.world_size:
        raise ConfigError("A grid with hydra/launcher=local runs on one machine: start it on one, or as a SLURM array.")
    path = directory_of(master)
    lock = lock_grid(path) if (path / LOCK).exists() else None
    print(f"grid       {len(job_overrides)} points to compose and check", flush=True)
    try:
        base = base_of(task, master, path)
        points = []
        for point in compose_points(task, master, job_overrides, first, options, path):
            points.append(point)
            if point.state != "finished":
                warm_up()  # not before: what is wrong with one point is mostly wrong with the first
        pools = _pools(points, options)
        make_directory(path, "hydra.sweep.dir")
        lock = lock_grid(path) if lock is None else lock
        remember(path, master, points, base)
    except BaseException:
        cool_down()
        raise

    states = [point.state for point in points]
    counts = [(states.count("finished"), "finished before"), (states.count("failed"), "to try again"), (
        states.count("interrupted") + states.count("stopped"), "to resume"), (states.count("new"), "new")]  # fmt: skip
    print(f"grid       {os.path.relpath(path)}: {', '.join(f'{n} {what}' for n, what in counts if n)}", flush=True)
    for pool in pools.values():
        print(f"devices    {pool.kind} {','.join(pool.locks)}, {options.world} per point", flush=True)
    task.stop = StopRequest(None, 0) if task.stop is None else task.stop
    display = Board(len(points), states.count("finished"))
    grid = Grid(path, points, pools, options.limit, parse_duration(options.max_time_per_run), display)
    try:
        grid.run(task.stop)
    finally:
        display.close()
    wanted = (str(path), options.metric, options.metric_mode)
    if all(state == "finished" for state in states):
        _compare(*wanted)
    else:
        _process(_compare, *wanted).join()  # where matplotlib has been imported
    if task.stop:
        command = again(path, options.world)
        print(f"stopped    ({task.stop.reason}), everything is saved. To go on:\n  {command}", flush=True)
    for point in points:
        if point.state == "failed":
            print(f"FAILED     point {point.index} ({point.label}): {point.reason}", file=sys.stderr, flush=True)
    cool_down()
    os.close(lock)
    return points


def _pools(points: Sequence[Point], options: Options) -> dict[str, devices.Pool]:
    """The devices that the grid may use, by kind.

    Raises:
        ConfigError: There are fewer than a point needs, or not those that were asked for.
    """
    found: dict[str, str] = {}
    if any(point.kind == "gpu" for point in points):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        asking = _process(_gpus, sender, options.listed)
        sender.close()
        try:
            found = receiver.recv()
        except EOFError as error:
            raise ConfigError("The GPUs of this machine do not answer torch: see the traceback above.") from error
        asking.join()
        if trouble := options.listed and gpus.visible(options.listed, os.environ.get("CUDA_VISIBLE_DEVICES")).trouble:
            print(f"note       {trouble}", flush=True)
        for point in points:
            if not found:
                point.kind = "cpu"  # a driver is there, but torch is built without it
    pools = {}
    for kind in sorted({point.kind for point in points}):
        there = found if kind == "gpu" else {str(core): str(core) for core in devices.cores()}
        pool, notes = devices.open_pool(kind, there, options.devices, options.world, options.listed)
        for line in notes:
            print(f"note       {line}", flush=True)
        pools[kind] = pool
        if options.world > len(pool):
            what = f"{len(pool)} GPUs" if kind == "gpu" else f"{len(pool)} cores, and no GPU is used"
            more = "" if kind == "gpu" else f" hydra.launcher.devices={options.world} lets them share cores."
            asked = options.devices_per_run
            raise ConfigError(
                (
                    f"hydra.launcher.devices_per_run={asked}"
                    if asked != "auto"
                    else f"{options.world} processes per point"
                )
                + f": point {points[0].index} and all others need {options.world} devices, and there are {what}.{more}"
            )
    return pools
