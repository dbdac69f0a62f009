"""The process in which W&B runs: it shows the record, online as long as the server plays along, else offline.

Messages come on standard input, events go to standard output; both are lines of JSON, see wandb.py.
"""

import contextlib
import heapq
import json
import math
import os
import queue
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from launcher.core import compat_python
from launcher.run.record import HISTOGRAMS, MEDIA, TABLE, Record, of_time
from launcher.run.trackers.process import ignore_signals
from launcher.run.trackers.wandb import HARD_LIMIT, PATIENT

# Seconds. Once training waits for its end, a server that is silent costs SILENT + PROBE / 2 and an offline run,
# 2 to 3 s in all (measured); one that answers but is slow is given the time that it needs, up to PATIENT.
INIT = 30.0
PROBE = 2.0
SILENT = 1.0
NICE = 10  # for W&B's processes where all cores train: about a tenth of a trainer's share


def _is_in_environment(setting: str) -> bool:
    """Whether a variable sets one of W&B's settings, which reads it by itself."""
    name = f"_{setting[2:]}" if setting.startswith("x_") else setting
    return f"WANDB_{name.upper()}" in os.environ and setting != "silent"  # which wandb.py sets for it


class View:
    """One W&B run that shows the record."""

    def __init__(self, settings: dict[str, Any], messages: BinaryIO, events: TextIO) -> None:
        self.settings = settings
        self.run_dir = Path(settings["run_dir"])
        self.place = Path(os.environ.get("WANDB_DIR") or self.run_dir)  # of W&B's own files
        self.events = events
        self.rows: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # Unless told otherwise
        self.end: dict[str, Any] = {"summary": {"status": "failed"}, "artifacts": {}, "patience": PATIENT}
        self.ending = threading.Event()
        self.first, self.last = 0, -1  # the first step that the server does not have, and the last one shown
        self.mode: Literal["online", "offline"] = "offline"
        self.services: list[subprocess.Popen[Any]] = []
        threading.Thread(target=self._read, args=(messages,), daemon=True).start()
        threading.Thread(target=self._watch_trainer, daemon=True).start()

    def serve(self) -> None:
        """From the first row to the last: online; where that fails at any point, over again offline."""
        self._import()
        self.tell(wait=HARD_LIMIT)
        try:
            self.mode = "online" if self._can_go_online() else "offline"
        except Exception as error:
            self._warn_of(error)
        for attempts_left in (2, 1, 0):
            self._set_older_segments_aside()
            try:
                self._within(float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT), self._start)
                if self.mode == "online":
                    self.tell(info=f"W&B: {self.run.url}")
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
            self.tell(wait=HARD_LIMIT)
            self.kill_services()
        if self.mode == "offline":
            segment = shlex.quote(str(Path(self.run.dir).parent))
            self.tell(info=f"W&B: recorded offline. To upload it: wandb sync {segment}")
        self.tell(finished=True)

    def _import(self) -> None:
        def begun(service: subprocess.Popen[Any]) -> None:
            if self.settings["behind"]:
                _stand_behind(service.pid)
            self.services.append(service)
            self.tell(service=service.pid)

        compat_python.on_wandb_core(begun)
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

    def tell(self, **event: Any) -> None:
        """Let the trainer know something."""
        with contextlib.suppress(OSError):  # the trainer is gone
            self.events.write(json.dumps(event) + "\n")
            self.events.flush()

    def _warn_of(self, error: Exception) -> None:
        trouble = str(error).strip() or type(error).__name__
        self.tell(warning=f"W&B cannot be used online: {trouble}. Recording offline")

    def _service_died(self) -> bool:
        time.sleep(0.2)  # one that is about to die has died then
        return any(service.poll() is not None for service in self.services)

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
        mode, has_key = self.settings["mode"], False
        if mode == "offline":
            return False
        with contextlib.suppress(self.wandb.errors.UsageError):
            has_key = self.wandb.login(verify=False)  # environment, netrc, settings; cannot ask here
        if has_key and (trouble := self._trouble()):
            raise ConnectionError(trouble)
        if not has_key and mode == "online":
            raise PermissionError("wandb.mode=online, but no API key is configured (see `wandb login`)")
        return has_key

    def _trouble(self) -> str | None:
        """What is wrong with the server; None where it answers. Returns within seconds."""
        settings = self.wandb.setup().settings
        proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
        handler = urllib.request.ProxyHandler({k: v for k, v in proxies.items() if v} or None)

        def ask() -> str | None:
            try:
                urllib.request.build_opener(handler).open(settings.base_url, timeout=PROBE).close()
            except urllib.error.HTTPError as error:  # 404 is an answer, 401 is explained by init
                return f"answers {error.code}" if error.code >= 500 else None
            except OSError as error:
                reason = getattr(error, "reason", error)
                # wandb-core has its own certificates
                return None if isinstance(reason, ssl.SSLError) else f"cannot be reached ({reason})"
            except Exception as error:  # what came is not HTTP
                return f"does not speak HTTP ({type(error).__name__})"
            return None

        answer = ThreadPoolExecutor(1).submit(ask)
        start = time.monotonic()
        while not answer.done() and time.monotonic() - start < (PROBE / 2 if self.ending.is_set() else PROBE):
            wait([answer], 0.05)
        trouble = answer.result() if answer.done() else "does not answer"
        return f"the server at {settings.base_url} {trouble}" if trouble else None

    def _within(self, limit: float, action: Callable[[], None]) -> None:
        """Do what may hang for `limit` seconds: less when training waits for it and the server is silent."""
        done = ThreadPoolExecutor(1).submit(action)
        start, waiting_since = time.monotonic(), math.inf
        while not done.done():
            wait([done], 0.05)
            now = time.monotonic()
            if self.ending.is_set():
                waiting_since = min(waiting_since, now)
            if now - start > limit:
                raise TimeoutError(f"no success within {limit:.0f} s")
            if now - waiting_since > SILENT:
                if self.mode == "online" and (trouble := self._trouble()):
                    raise TimeoutError(trouble)
                waiting_since = time.monotonic()
                self.tell(wait=HARD_LIMIT)
        done.result()

    def kill_services(self) -> None:
        """Leave nothing of W&B running."""
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
            "init_timeout": INIT,
            "finish_timeout": PATIENT,
            "disable_job_creation": True,
            # A diff of the working tree, or the URL of a remote, may hold a password.
            "disable_git": self.settings["code"] is None,
            "disable_code": self.settings["code"] is None,
            "save_code": self.settings["code"] is not None,
            "git_commit": os.environ.get("LAUNCHER_COMMIT"),  # of a job whose code is a copy without its repository
        } | compat_python.wandb_settings(self.settings["trainer"])
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
        metrics, timings, histograms, media = (
            Record(self.run_dir / name).rows() for name in ("metrics.jsonl", "timings.jsonl", HISTOGRAMS, MEDIA)
        )
        replayed = (metrics, ({"step": row["step"]} | of_time(row) for row in timings), histograms, media)
        for count, row in enumerate(heapq.merge(*replayed, key=lambda row: row["step"])):
            self._log(row)
            if count % 1000 == 0:
                self.tell(wait=HARD_LIMIT)  # a long replay is not a hang
        while not (self.ending.is_set() and self.rows.empty()):
            with contextlib.suppress(queue.Empty):
                self._log(self.rows.get(timeout=0.2))

    def _log(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if step >= max(self.first, self.last):  # a step may have histograms beside its row: W&B puts them together
            shown = {name: self._shown(value) for name, value in row.items()}
            self.run.log({name: value for name, value in shown.items() if name != "step"}, step=step)
            self.last = step

    def _shown(self, value: Any) -> Any:
        """A figure, or what W&B calls a histogram (a list, see record.py) or an image."""
        if isinstance(value, dict):
            return self.wandb.Image(str(self.run_dir / value["image"]))
        return self._histogram(value) if isinstance(value, list) else value

    def _histogram(self, row: list[float]) -> Any:
        import numpy as np

        low, high, *counts = row
        return self.wandb.Histogram(np_histogram=(np.array(counts), np.linspace(low, high, len(counts) + 1)))

    def _table(self) -> Any:
        import numpy as np

        with np.load(self.run_dir / TABLE) as columns:
            named = {name: columns[name] for name in columns.files}
        lists = [[self.wandb.Image(one) for one in v] if v.ndim > 1 else v.tolist() for v in named.values()]
        return self.wandb.Table(columns=list(named), data=[list(row) for row in zip(*lists, strict=True)])

    def _finish(self) -> None:
        summary = self.end["summary"]
        failed = summary.get("status") == "failed"
        shown = {}
        if not failed and (picture := self.run_dir / "curves.png").exists():
            shown["curves"] = self.wandb.Image(str(picture))
        if not failed and (self.run_dir / TABLE).exists():
            shown["predictions"] = self._table()
        if shown:  # at the last step, not one after it: a run that is trained further has a row of its own there
            self.run.log(shown, step=max(self.last, 0))
        for path, aliases in self.end["artifacts"].items():
            about = {"checkpoint": Path(path).name}
            artifact = self.wandb.Artifact(f"checkpoint-{self.run.id}", "model", metadata=about)
            artifact.add_dir(path, policy="immutable")
            self.run.log_artifact(artifact, aliases=aliases)
        flat = {name: value for name, value in summary.items() if name not in ("final", "best")}
        flat |= summary.get("final") or {}
        flat |= {f"best/{name}": value for name, value in (summary.get("best") or {}).items()}
        self.run.summary.update(flat)
        self.run.finish(exit_code=int(failed))
        # wandb-core answers before the file is written: killing it here lost rows. Its own end does not.
        with contextlib.suppress(SystemExit):
            self.wandb.teardown()


def _stand_behind(pid: int) -> None:
    """Let a session have what others leave of the processor: Linux shares it among sessions first, whatever is nice."""
    with contextlib.suppress(OSError):  # a kernel without such groups goes by `nice` alone
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def main() -> None:
    """Run as the tracker's process, without a word on the terminal."""
    ignore_signals()
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
    view = View(settings, messages, events)
    try:
        view.serve()
    except Exception as error:
        view.tell(warning=f"W&B records nothing: {type(error).__name__}: {error}", finished=True)
    finally:
        view.kill_services()
        os._exit(0)  # past W&B's exit hooks, which wait for the server
