"""Weights & Biases as a view of the record: the trainer's end of the pipe to W&B's own process.

The record is the truth: one row per step, whatever was killed. The tracker holds nothing that the record does
not, so what it loses (a killed process, a dead server) is replayed from there.

In the training process W&B's import would hold the interpreter lock for 0.5 to 2 s and each log call for 0.12 ms, its
exit hooks would wait for the server, and its helpers write to the terminal. And a process that hangs can be killed, a
thread cannot. What is left for training (measured): 0.3 ms to construct the tracker, 10 microseconds a row.
"""

import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.run.trackers import process

log = logging.getLogger("launcher")

PROCESS = "launcher.run.trackers.wandb_process"
# Seconds; see wandb_process.py
PATIENT = 60.0
UPLOAD = 5e6  # bytes a second that a slow network takes
HARD_LIMIT = 4.5  # without a sign of life from the tracker's process
# Error reports go to the same server, and W&B waits for them at exit: 2 s if it hangs (measured). Unless it is silent,
# its login asks the server for a name, and waits.
QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
IMPORTED_LATE = ("requests", "pandas", "wandb.apis.public", "wandb.sdk.launch")  # by W&B, for its first run
STARTING = 30.0  # that it may take to import W&B on a busy machine


def wanted_mode(mode: str) -> str:
    """The mode to track in: the configured one, or what the environment says where that is `auto`, if it does."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    asked = os.environ.get("WANDB_MODE", "").lower()
    asked = {"run": "online", "dryrun": "offline"}.get(asked, asked)  # W&B's older names
    return asked if asked in ("online", "offline", "disabled") else "auto"


def warm_up() -> None:
    """Import W&B here, once for all runs that this process will show; see `process.warm_up`."""
    os.environ |= QUIET  # which it reads when it is imported
    process.warm_up(PROCESS, "wandb", *IMPORTED_LATE)


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
        wandb: The settings of conf's wandb node. Null leaves one to W&B's own variables and settings.
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
        wandb: Mapping[str, Any],
        run_id: str,
        code: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> None:
        self._mode = wanted_mode(wandb["mode"])
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
                **{name: wandb[name] for name in ("project", "entity", "name", "group")},
                "tags": list(wandb["tags"]) if wandb["tags"] else None,
                "id": run_id,
                "config": dict(config),
            },
        }
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._end: bytes | None = None
        self._child: subprocess.Popen[bytes] | process.Forked | None = None
        self._service: int | None = None
        self._deadline, self._slack = math.inf, 1.0
        self._warned = self._finished = self._heard = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self._mode != "disabled":
            self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show a row that the record already has. Returns at once."""
        if self._thread.is_alive():
            self._messages.put(_encode({"row": dict(row)}))

    @property
    def waits(self) -> bool:
        """Whether W&B's process has not begun: nothing of this start is at W&B yet."""
        return self._mode != "disabled" and self._wait > 0 and self._child is None

    def begin(self) -> None:
        """Wait no longer with W&B's process: training is over."""
        self._begun.set()

    def finish(self, summary: Mapping[str, Any], artifacts: Mapping[Path, list[str]], slack: float = 1.0) -> bool:
        """End the run, and wait until it is uploaded, or safe on the disk: for seconds if the server is silent.

        Args:
            summary: summary.json. Its `final` metrics appear under their own names, `best` ones as
                `best/<name>`; the `status` "failed" marks the run as failed.
            artifacts: Checkpoint to its aliases; each becomes a version of the run's model. They are not copied:
                an offline run needs them where they are until it is uploaded.
            slack: How many times as long as usually it may be without a sign of life, where nobody waits for this.

        Returns:
            Whether it came to its end.
        """
        models = {str(path.absolute()): aliases for path, aliases in artifacts.items()}
        patience = PATIENT + sum(file.stat().st_size for path in artifacts for file in path.iterdir()) / UPLOAD
        self._end = _encode({"finish": {"summary": dict(summary), "artifacts": models, "patience": patience}})
        self._slack = slack
        self._deadline = time.monotonic() + slack * HARD_LIMIT + (STARTING if self._wait and not self._heard else 0)
        self.begin()
        latest = time.monotonic() + slack * patience
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
        environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_MODE")}
        environment |= QUIET
        # What it copies for an upload, such as the images of a table, stays with the run and not in the home directory.
        environment.setdefault("WANDB_DATA_DIR", f"{self._settings['run_dir']}/wandb/staging")
        child = process.begin(PROCESS, environment)
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
                self._deadline = time.monotonic() + self._slack * event["wait"]
            if "finished" in event:
                self._finished = True

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s (metrics.jsonl holds every row).", text.rstrip("."))


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"
