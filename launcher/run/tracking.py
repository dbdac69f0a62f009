"""The record of a run (metrics.jsonl), and Weights & Biases as a view of it.

The record is the truth: one row per step, whatever was killed. The tracker holds nothing that the record does
not, so what it loses (a killed process, a dead server) is replayed from there.

W&B runs in a process of its own (this file, started as a script). In the training process its import would hold
the interpreter lock for 0.5 to 2 s and each log call for 0.12 ms, its exit hooks would wait for the server, and
its helpers write to the terminal. And a process that hangs can be killed, a thread cannot. What is left for
training (measured): 0.3 ms to construct the tracker, 10 microseconds a row.
"""

import contextlib
import heapq
import json
import logging
import math
import os
import queue
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

if __name__ == "__main__":  # started as a file, with -P: this directory's modules would hide packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from launcher.core.files import numbers, plain, replacing

log = logging.getLogger("launcher")

HISTOGRAMS = "histograms.jsonl"  # in a run directory: rows whose values are lists, an end, an end, counts of bins

# Seconds. Once training waits for its end, a server that is silent costs SILENT + PROBE / 2 and an offline run,
# 2 to 3 s in all (measured); one that answers but is slow is given the time that it needs, up to PATIENT.
INIT = 30.0
PROBE = 2.0
SILENT = 1.0
PATIENT = 60.0
UPLOAD = 5e6  # bytes a second that a slow network takes
HARD_LIMIT = 4.5  # without a sign of life from the tracker's process
NICE = 10  # for W&B's processes where all cores train: about a tenth of a trainer's share
STARTING = 30.0  # that it may take to import W&B on a busy machine


class Record:
    """A file of JSON lines, one row per step, in order.

    Args:
        path: The file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._last = -1
        self._left = b""  # what a full disk has not taken yet
        self._bytes = self._checksum = 0  # of all rows

    def open(self, resume_step: int | None) -> None:
        """Open for writing, with the rows up to `resume_step` and nothing else.

        What was written after the checkpoint that a run resumes from is written again, and a line torn by a
        kill has no end: both are cut off, atomically, so that a kill in here loses nothing either.

        Args:
            resume_step: Last step to keep (inclusive); None starts over.
        """
        self.close()
        old = self.path.read_bytes() if self.path.exists() else b""
        # From the end: a run of a million steps starts again as fast as one of ten.
        end, self._last = len(old), -1
        while end:
            begin = old.rfind(b"\n", 0, end - 1) + 1
            row = _parse(old[begin:end])
            if resume_step is not None and row is not None and row["step"] <= resume_step:
                self._last = row["step"]
                break
            end = begin
        if end < len(old):
            with replacing(self.path, "wb", durable=True) as file:
                file.write(old[:end])
        self._bytes, self._checksum = end, zlib.crc32(memoryview(old)[:end])
        self._file, self._left = self.path.open("ab", buffering=0), b""

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, and hand it to the operating system: a kill of this process does not take it back.

        Where the disk is full, that is a warning, and the row waits for the next one or for `sync`.

        Args:
            row: `step` (int, above that of the last row) and numbers by name. Floats read back bit for bit;
                NaN and infinities, which JSON lacks, are written as the strings "nan", "inf" and "-inf".

        Raises:
            ValueError: The step is not above the last one.
        """
        assert self._file is not None, "open() comes before write()"
        step = row["step"]
        if step <= self._last:
            raise ValueError(f"{self.path.name}: a row for step {step} after the row for step {self._last}")
        ordered = {"step": step} | plain(row)
        line = json.dumps(ordered, allow_nan=False).encode() + b"\n"
        waited, self._left = bool(self._left), self._left + line
        self._bytes, self._checksum = self._bytes + len(line), zlib.crc32(line, self._checksum)
        self._last = step
        try:
            self._hand_over()
        except OSError as error:
            if not waited:
                log.warning("%s cannot be written (%s); its rows wait until it can.", self.path, error.strerror)

    def _hand_over(self) -> None:
        assert self._file is not None
        while self._left:  # a raw file takes what it can
            self._left = self._left[self._file.write(self._left) :]

    def sync(self) -> None:
        """Wait until the rows are on the disk: before a checkpoint that counts on them is made visible.

        Raises:
            OSError: It does not take them.
        """
        if self._file is not None:
            self._hand_over()
            os.fsync(self._file.fileno())

    def mark(self) -> tuple[int, int]:
        """Bytes and checksum of the rows so far, by which `holds` knows them again."""
        return self._bytes, self._checksum

    def holds(self, mark: Sequence[int]) -> bool:
        """Whether the file begins with the rows of a mark: nobody has removed or changed one since."""
        size, checksum = mark
        try:
            with self.path.open("rb") as file:
                return zlib.crc32(file.read(size)) == checksum
        except FileNotFoundError:
            return size == 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows so far, non-finite numbers as floats again. A torn last line is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if (row := _parse(line)) is not None:
                    yield numbers(row)

    def close(self) -> None:
        """Close the file. The record can be opened again."""
        if self._file is not None:
            try:
                self._hand_over()
            except OSError as error:
                log.warning("%s lacks its last rows: %s", self.path, error.strerror)
            self._file.close()
            self._file = None


def of_time(timing: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row of timings.jsonl by the names that trackers show them under."""
    return {f"time/{name}": value for name, value in timing.items() if name not in ("step", "time")}


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line of the record; None where it is not a whole row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def wanted_mode(mode: str) -> str:
    """The mode to track in: the configured one, or what the environment says where that is `auto`.

    Args:
        mode: `auto`, `online`, `offline` or `disabled`.

    Returns:
        One of the same; `auto` where WANDB_MODE leaves it open too.
    """
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    asked = os.environ.get("WANDB_MODE", "").lower()
    asked = {"run": "online", "dryrun": "offline"}.get(asked, asked)  # W&B's older names
    return asked if asked in ("online", "offline", "disabled") else "auto"


def _has_key() -> bool:
    """Whether an API key is where most have it, without the seconds that importing W&B takes."""
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    return "WANDB_API_KEY" in os.environ or any(place and Path(place).expanduser().exists() for place in places)


class WandbTracker:
    """Weights & Biases as a view of the record. Nothing here waits for it, but `finish`, for seconds.

    Whatever goes wrong is one warning, and the run is recorded offline, complete. A resumed run goes on under
    the same `run_id`: online after the last step that the server has, offline in a new segment that holds all
    rows since the first and takes the place of the older ones.

    Args:
        run_dir: Run directory: its metrics.jsonl is read, its wandb/ written.
        config: The composed config, shown as the run's config.
        mode: `auto` (WANDB_MODE where set; else online where W&B finds an API key, offline without),
            `online`, `offline` or `disabled`.
        project: W&B project; None leaves it to W&B's own variables and settings, as with the next four, and is
            "launcher" where they name none.
        entity: User or team.
        name: Display name.
        group: Runs shown together.
        tags: Labels.
        run_id: Stable name of this run directory's run within the project.
        code: Name to path of source files that W&B is to have, beside the commit of git, its remote and the diff to it;
            None: none of that.
        wait: Seconds before W&B's process starts, unless the end comes first, where nobody can look at the run
            meanwhile: offline, and where no key is to be seen. For machines whose cores all train.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        mode: str,
        project: str | None,
        entity: str | None,
        name: str | None,
        group: str | None,
        tags: list[str] | None,
        run_id: str,
        code: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> None:
        self._mode = wanted_mode(mode)
        seen = self._mode == "online" or (self._mode == "auto" and _has_key())
        self._wait = 0.0 if seen or code is not None else wait  # code is to be that of the start
        self._begun = threading.Event()
        self._settings: dict[str, Any] = {
            "run_dir": str(Path(run_dir).absolute()),
            "trainer": os.getpid(),
            "argv": sys.argv,
            "behind": self._wait > 0,
            "code": None if code is None else dict(code),
            "init": {
                "project": project,
                "entity": entity,
                "name": name,
                "group": group,
                "tags": list(tags) if tags else None,
                "id": run_id,
                "config": dict(config),
            },
        }
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._end: bytes | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._service: int | None = None
        self._deadline = math.inf
        self._warned = self._finished = self._heard = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self._mode != "disabled":
            self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show a row that the record already has. Returns at once.

        Args:
            row: As for `Record.write`.
        """
        if self._thread.is_alive():
            self._messages.put(_encode({"row": dict(row)}))

    def begin(self) -> None:
        """Wait no longer with W&B's process: training is over."""
        self._begun.set()

    def finish(
        self,
        summary: Mapping[str, Any],
        pictures: Mapping[str, Path],
        artifacts: Mapping[Path, list[str]] | None = None,
        table: Path | None = None,
    ) -> bool:
        """End the run, and wait until it is uploaded, or safe on the disk: for seconds if the server is silent.

        Args:
            summary: summary.json. Its `final` metrics appear under their own names, `best` ones as
                `best/<name>`; the `status` "failed" marks the run as failed.
            pictures: Name to image file; those that do not exist are left out.
            artifacts: Checkpoint to its aliases; each becomes a version of the run's model. They are not copied:
                an offline run needs them where they are until it is uploaded.
            table: File of NumPy with the columns of a table; one of more than one dimension has images.

        Returns:
            Whether it came to its end.
        """
        images = {name: str(Path(path).absolute()) for name, path in pictures.items()}
        models = {str(Path(path).absolute()): aliases for path, aliases in (artifacts or {}).items()}
        patience = PATIENT + sum(file.stat().st_size for path in models for file in Path(path).iterdir()) / UPLOAD
        end = {"summary": dict(summary), "pictures": images, "artifacts": models, "patience": patience}
        end["table"] = None if table is None else str(Path(table).absolute())
        self._end = _encode({"finish": end})
        self._deadline = time.monotonic() + HARD_LIMIT + (STARTING if self._wait and not self._heard else 0)
        self.begin()
        latest = time.monotonic() + patience
        self._messages.put(None)
        while self._thread.is_alive() and time.monotonic() < min(self._deadline, latest):
            self._thread.join(0.05)
        if not self._thread.is_alive():
            return self._finished or self._mode == "disabled"
        self._warn("W&B did not end in time and was stopped")
        self._finished = True
        if self._child is not None:
            self._child.kill()
        if self._service is not None:  # it would notice by itself, up to 2 s later (measured)
            with contextlib.suppress(OSError):
                os.kill(self._service, signal.SIGKILL)
        self._thread.join(1)
        return False

    def _work(self) -> None:
        self._begun.wait(self._wait)
        for attempt in (self._mode, "offline"):  # a process that was killed or crashed is replaced once
            try:
                self._serve(attempt)
            except Exception as error:
                self._warn(f"W&B could not be started: {error}")
            if self._finished:
                return
            self._warn(f"W&B's process ended early (status {self._child and self._child.returncode})")

    def _serve(self, mode: str) -> None:
        # -P keeps this file's directory off sys.path, where metrics.py and others would hide packages. A session
        # of its own: Ctrl-C in the terminal is for the trainer, which then calls finish.
        environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_MODE")}
        # Error reports go to the same server, and W&B waits for them at exit: 2 s if it hangs (measured).
        environment["WANDB_ERROR_REPORTING"] = "false"
        environment["WANDB_SILENT"] = "true"  # else login asks the server for a name, and waits
        # What it copies for an upload, such as the images of a table, stays with the run and not in the home directory.
        environment.setdefault("WANDB_DATA_DIR", f"{self._settings['run_dir']}/wandb/staging")
        from launcher.distributed.children import sheltered  # not at the top: this file is a script, too

        with sheltered():
            child = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        self._child = child
        assert child.stdin is not None and child.stdout is not None
        listener = threading.Thread(target=self._listen, args=(child.stdout,), daemon=True)
        listener.start()
        with contextlib.suppress(OSError):  # the process is gone: the caller sees that no "finished" came
            child.stdin.write(_encode(self._settings | {"mode": mode}))
            while self._end is None or not self._messages.empty():
                child.stdin.flush()
                message = self._messages.get()
                if message is None:
                    break
                child.stdin.write(message)
            assert self._end is not None
            child.stdin.write(self._end)
            child.stdin.close()
        listener.join()
        child.wait()
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()

    def _listen(self, stream: Any) -> None:
        for line in stream:
            event = json.loads(line)
            self._heard = True
            if "warning" in event:
                self._warn(event["warning"])
            if "info" in event:
                log.info("%s", event["info"])
            if "service" in event:
                self._service = event["service"]
            if "wait" in event and self._end is not None:
                self._deadline = time.monotonic() + event["wait"]
            if "finished" in event:
                self._finished = True

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s (metrics.jsonl holds every row).", text.rstrip("."))


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"


# What follows runs in the tracker's own process only.


def _is_in_environment(setting: str) -> bool:
    """Whether a variable sets one of W&B's settings, which reads it by itself."""
    name = f"_{setting[2:]}" if setting.startswith("x_") else setting
    return f"WANDB_{name.upper()}" in os.environ and setting != "silent"  # which is set for it in `_serve`


class _View:
    """W&B's side of the pipe: one W&B run that shows the record, online as long as the server plays along."""

    def __init__(self, settings: dict[str, Any], messages: BinaryIO, events: TextIO) -> None:
        self.settings = settings
        self.run_dir = Path(settings["run_dir"])
        self.place = Path(os.environ.get("WANDB_DIR") or self.run_dir)  # of W&B's own files
        self.events = events
        self.rows: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # Unless told otherwise
        self.end: dict[str, Any] = {
            "summary": {"status": "failed"}, "pictures": {}, "artifacts": {}, "patience": PATIENT, "table": None,
        }  # fmt: skip
        self.ending = threading.Event()
        self.first, self.last = 0, -1  # the first step that the server does not have, and the last one shown
        self.mode: Literal["online", "offline"] = "offline"
        self.services: list[subprocess.Popen[Any]] = []
        threading.Thread(target=self._read, args=(messages,), daemon=True).start()
        threading.Thread(target=self._watch_trainer, daemon=True).start()

    def serve(self) -> None:
        """From the first row to the last: online; where that fails at any point, over again offline."""
        self._import()
        self._tell(wait=HARD_LIMIT)
        try:
            self.mode = "online" if self._can_go_online() else "offline"
        except Exception as error:
            self._warn_of(error)
        for attempts_left in (2, 1, 0):
            self._set_older_segments_aside()
            try:
                self._within(float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT), self._start)
                if self.mode == "online":
                    self._tell(info=f"W&B: {self.run.url}")
                self._follow()
                self._within(self.end["patience"], self._finish)
                break
            except Exception as error:
                if not attempts_left:
                    raise
                # A cluster that ends a job signals every process of it, and wandb-core obeys: started again, it
                # goes on where it was. Else it is the server, and no use to try that again.
                if self.mode == "online" and not self._service_died():
                    self._warn_of(error)
                    self.mode = "offline"
            self._tell(wait=HARD_LIMIT)
            self._kill_services()
        if self.mode == "offline":
            segment = shlex.quote(str(Path(self.run.dir).parent))
            self._tell(info=f"W&B: recorded offline. To upload it: wandb sync {segment}")
        self._tell(finished=True)

    def _import(self) -> None:
        view = self

        class Popen(subprocess.Popen):
            """W&B does not tell the process id of its wandb-core, which may have to be killed."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                if "wandb-core" in str(self.args):
                    if view.settings["behind"]:
                        _stand_behind(self.pid)
                    view.services.append(self)
                    view._tell(service=self.pid)

        subprocess.Popen = Popen  # type: ignore[misc]
        import wandb

        self.wandb = wandb

    def _read(self, messages: BinaryIO) -> None:
        for line in messages:
            message = json.loads(line)
            if "row" in message:
                self.rows.put(message["row"])
            else:
                self.end = message["finish"]
        self.ending.set()

    def _watch_trainer(self) -> None:
        # The end of the pipe is not enough: a data worker forked from a killed trainer holds the pipe open.
        while os.getppid() == self.settings["trainer"]:
            time.sleep(0.5)
        self.ending.set()

    def _tell(self, **event: Any) -> None:
        with contextlib.suppress(OSError):  # the trainer is gone
            self.events.write(json.dumps(event) + "\n")
            self.events.flush()

    def _warn_of(self, error: Exception) -> None:
        trouble = str(error).strip() or type(error).__name__
        self._tell(warning=f"W&B cannot be used online: {trouble}. Recording offline")

    def _service_died(self) -> bool:
        for service in self.services:
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(0.2)
                return True
        return False

    def _set_older_segments_aside(self) -> None:
        # W&B ignores `resume` offline, and a kill takes the last seconds of a segment. So each start replays the
        # whole record into a new segment, and `wandb sync RUN_DIR/wandb/offline-run-*` uploads one complete
        # series. All that the older segments have besides is system metrics: superseded/ may be deleted.
        aside, own = self.place / "wandb" / "superseded", self.settings["init"]["id"]
        for old in [*aside.parent.glob(f"offline-run-*-{own}"), *aside.parent.glob(f"run-*-{own}")]:
            aside.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                old.rename(aside / f"{old.name}-{time.time_ns()}")

    def _can_go_online(self) -> bool:
        """Whether to try. Raises where a key is there, or was demanded, and online cannot be."""
        mode = self.settings["mode"]
        if mode == "offline":
            return False
        try:
            has_key = self.wandb.login(verify=False)  # environment, netrc, settings; cannot ask here
        except self.wandb.errors.UsageError:
            has_key = False
        if has_key and (trouble := self._trouble()):
            raise ConnectionError(trouble)
        if not has_key and mode == "online":
            raise PermissionError("wandb.mode=online, but no API key is configured (see `wandb login`)")
        return bool(has_key)

    def _trouble(self) -> str | None:
        """What is wrong with the server; None where it answers. Returns within seconds."""
        settings = self.wandb.setup().settings
        proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
        handler = urllib.request.ProxyHandler({k: v for k, v in proxies.items() if v} or None)
        answers: list[str | None] = []

        def ask() -> None:
            trouble = None
            try:
                urllib.request.build_opener(handler).open(settings.base_url, timeout=PROBE).close()
            except urllib.error.HTTPError as error:  # 404 is an answer, 401 is explained by init
                trouble = f"answers {error.code}" if error.code >= 500 else None
            except OSError as error:
                reason = getattr(error, "reason", error)
                if not isinstance(reason, ssl.SSLError):  # wandb-core has its own certificates
                    trouble = f"cannot be reached ({reason})"
            except Exception as error:  # what came is not HTTP
                trouble = f"does not speak HTTP ({type(error).__name__})"
            answers.append(trouble)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        start = time.monotonic()
        while asking.is_alive() and time.monotonic() - start < (PROBE / 2 if self.ending.is_set() else PROBE):
            asking.join(0.05)
        trouble = answers[0] if answers else "does not answer"
        return f"the server at {settings.base_url} {trouble}" if trouble else None

    def _within(self, limit: float, action: Callable[[], None]) -> None:
        """Do what may hang for `limit` seconds: less when training waits for it and the server is silent."""
        failures: list[BaseException] = []

        def act() -> None:
            try:
                action()
            except BaseException as error:
                failures.append(error)

        acting = threading.Thread(target=act, daemon=True)
        acting.start()
        start = time.monotonic()
        waiting_since = math.inf
        while acting.is_alive():
            acting.join(0.05)
            now = time.monotonic()
            if self.ending.is_set():
                waiting_since = min(waiting_since, now)
            if now - start > limit:
                raise TimeoutError(f"no success within {limit:.0f} s")
            if now - waiting_since > SILENT:
                if self.mode == "online" and (trouble := self._trouble()):
                    raise TimeoutError(trouble)
                waiting_since = time.monotonic()
                self._tell(wait=HARD_LIMIT)
        if failures:
            raise failures[0]

    def _kill_services(self) -> None:
        for service in self.services:
            service.kill()
            service.wait()
        self.services.clear()
        with contextlib.suppress(BaseException):  # it says that the service is gone, or exits with its status
            self.wandb.teardown()

    def _start(self) -> None:
        wanted = {
            "silent": True,
            "console": "off",
            "symlink": False,
            "program": self.settings["argv"][0],
            "x_stats_pid": self.settings["trainer"],
            "init_timeout": INIT,
            "finish_timeout": PATIENT,
            "disable_job_creation": True,
            # A diff of the working tree, or the URL of a remote, may hold a password.
            "disable_git": self.settings["code"] is None,
            "disable_code": self.settings["code"] is None,
            "save_code": self.settings["code"] is not None,
            "git_commit": os.environ.get("LAUNCHER_COMMIT"),  # of a job whose code is a copy without its repository
            # Every 15 s by default, which a kill would take.
            "x_transaction_log_flush_interval": 2.0,
        }
        known = self.wandb.Settings.model_fields
        chosen = {name: value for name, value in wanted.items() if name in known and not _is_in_environment(name)}
        named = self.settings["init"]["project"] or self.wandb.setup().settings.project or "launcher"
        self.run = self.wandb.init(
            **self.settings["init"] | {"project": named},
            mode=self.mode,
            dir=str(self.place),
            resume="allow" if self.mode == "online" and not _is_in_environment("resume") else None,
            reinit="create_new",
            settings=self.wandb.Settings(**chosen),
        )
        self.first, self.last = self.run.step, self.run.step - 1  # the server would drop rows that it has already
        if self.settings["code"]:
            self._give_code()

    def _give_code(self) -> None:
        """Let W&B log the files alone: it would walk through all of the working directory, data and runs included."""
        with tempfile.TemporaryDirectory(prefix="launcher-code-") as place:
            for name, path in self.settings["code"].items():
                target = Path(place, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # gone since it was imported
                    shutil.copyfile(path, target)
            self.run.log_code(place, name=f"source-{self.run.project}")

    def _follow(self) -> None:
        metrics, timings, histograms = (
            Record(self.run_dir / name).rows() for name in ("metrics.jsonl", "timings.jsonl", HISTOGRAMS)
        )
        replayed = (metrics, ({"step": row["step"]} | of_time(row) for row in timings), histograms)
        for count, row in enumerate(heapq.merge(*replayed, key=lambda row: row["step"])):
            self._log(row)
            if count % 1000 == 0:
                self._tell(wait=HARD_LIMIT)  # a long replay is not a hang
        while not (self.ending.is_set() and self.rows.empty()):
            with contextlib.suppress(queue.Empty):
                self._log(self.rows.get(timeout=0.2))

    def _log(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if step >= max(self.first, self.last):  # a step may have histograms beside its row: W&B puts them together
            shown = {name: self._histogram(v) if isinstance(v, list) else v for name, v in row.items()}
            self.run.log({name: value for name, value in shown.items() if name != "step"}, step=step)
            self.last = step

    def _histogram(self, row: list[float]) -> Any:
        import numpy as np

        low, high, *counts = row
        return self.wandb.Histogram(np_histogram=(np.array(counts), np.linspace(low, high, len(counts) + 1)))

    def _table(self, file: str) -> Any:
        import numpy as np

        with np.load(file) as columns:
            named = {name: columns[name] for name in columns.files}
        lists = [[self.wandb.Image(one) for one in v] if v.ndim > 1 else v.tolist() for v in named.values()]
        return self.wandb.Table(columns=list(named), data=[list(row) for row in zip(*lists, strict=True)])

    def _finish(self) -> None:
        summary, pictures = self.end["summary"], self.end["pictures"]
        # At the last step, not one after it: a run that is trained further has a row of its own there.
        shown = {name: self.wandb.Image(path) for name, path in pictures.items() if os.path.exists(path)}
        if self.end["table"] is not None:
            shown["predictions"] = self._table(self.end["table"])
        if shown:
            self.run.log(shown, step=max(self.last, 0))
        for path, aliases in self.end["artifacts"].items():
            artifact = self.wandb.Artifact(
                f"checkpoint-{self.run.id}", "model", metadata={"checkpoint": Path(path).name}
            )
            artifact.add_dir(path, policy="immutable")
            self.run.log_artifact(artifact, aliases=aliases)
        flat = {name: value for name, value in summary.items() if name not in ("final", "best")}
        flat |= summary.get("final") or {}
        flat |= {f"best/{name}": value for name, value in (summary.get("best") or {}).items()}
        self.run.summary.update(flat)
        self.run.finish(exit_code=int(summary.get("status") == "failed"))
        # wandb-core answers before the file is written: killing it here lost rows. Its own end does not.
        with contextlib.suppress(SystemExit):
            self.wandb.teardown()


def _stand_behind(pid: int) -> None:
    """Let a session have what others leave of the processor: Linux shares it among sessions first, whatever is nice."""
    with contextlib.suppress(OSError):  # a kernel without such groups goes by `nice` alone
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def _serve() -> None:
    """Run as the tracker's process: messages on standard input, events on standard output, no chatter."""
    # Signals of a cluster reach every process of a step; the trainer decides when to end.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Private copies, so that wandb-core neither holds the pipes open nor writes into them.
    messages, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    settings = json.loads(messages.readline())
    sys.argv = settings["argv"]
    if settings["behind"]:
        os.nice(NICE)  # what it starts has it from here
        _stand_behind(os.getpid())
    view = _View(settings, messages, events)
    try:
        view.serve()
    except Exception as error:
        view._tell(warning=f"W&B records nothing: {type(error).__name__}: {error}", finished=True)
    finally:
        view._kill_services()
        os._exit(0)  # past W&B's exit hooks, which wait for the server


if __name__ == "__main__":
    _serve()
