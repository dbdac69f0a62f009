"""Whole runs of the W&B tracker, against servers on loopback that refuse, hang, fail, break or work."""

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from processes import REPOSITORY

KEY = "0123456789abcdef" * 2 + "fedcba98"
LONG_KEY = "wandb_v1_" + "Ab9" * 26


TRAINER = """
import json, logging, os, signal, sys, threading, time
from pathlib import Path
from launcher.run.record import Record
from launcher.run.trackers.wandb import WandbTracker
case = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s", stream=sys.stderr)
run_dir = Path(case["run_dir"])
handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
record = Record(run_dir / "metrics.jsonl")
record.open(case["resume"])
start = time.monotonic()
wandb = {"mode": case["mode"], "project": "project", "entity": None, "name": "name", "group": "group", "tags": ["tag"]}
tracker = WandbTracker(run_dir, case["config"], wandb, "runid01")
slowest = 0.0
for step in range(case["first"], case["last"] + 1):
    row = {"step": step, "epoch": step / 10, "train/loss": 1 / step}
    record.write(row)
    before = time.perf_counter()
    tracker.log(row)
    slowest = max(slowest, time.perf_counter() - before)
    time.sleep(case["seconds"] / (case["last"] + 1 - case["first"]))
figures = {"slowest": slowest, "started": time.monotonic() - start}
if case["kill_child"]:
    os.kill(tracker._child.pid, signal.SIGKILL)
if case["signal_all"]:  # as a cluster does that ends a job
    child = tracker._child.pid
    tasks = Path(f"/proc/{child}/task")
    services = []
    while not services:  # wandb-core takes its time on a busy machine; a thread of the process may have started it
        time.sleep(0.1)
        services = [p for f in tasks.glob("*/children") for p in f.read_text().split()]
    time.sleep(1)
    for process in (child, *map(int, services)):
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:  # W&B has helpers that live for a moment
            pass
    time.sleep(0.3)
if case["die"]:
    print(json.dumps({"child": tracker._child.pid}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
before = time.monotonic()
tracker.finish(case["summary"], {})
figures["finish"] = time.monotonic() - before
figures["child"] = tracker._child.pid
figures["wandb_imported"] = "wandb" in sys.modules
figures["handlers_kept"] = handlers == {s: signal.getsignal(s) for s in handlers}
print(json.dumps(figures), flush=True)
"""
SUMMARY = {"status": "finished", "step": 30, "final": {"test/accuracy": 0.625}, "best": {"eval/loss": 0.125}}
CONFIG = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "seed": 3}


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs, and its ways to fail."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests.append((self.path, self.headers.get("authorization")))
        behaviour = self.server.behaviour
        if behaviour == "hangs":
            self.server.closing.wait()
            return
        if behaviour.isdigit():
            self.reply(int(behaviour), {})
            return
        answer = {"data": {}}
        if self.path == "/graphql":
            query = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"]).group(1)
            project = {"id": "m", "name": "project", "entity": {"id": "e", "name": "entity"}}
            if operation == "RunResumeStatus":
                answer = {"data": {"model": project | {"bucket": self.server.bucket}}}
            elif operation == "UpsertBucket":
                bucket = {"id": "b", "name": "runid01", "displayName": "name", "config": "{}", "project": project}
                answer = {"data": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}}
                if behaviour == "breaks":
                    self.server.behaviour = "hangs"
            elif operation == "CreateRunFiles":
                url = f"http://127.0.0.1:{self.server.server_port}/upload/"
                files = [{"name": name, "uploadUrl": url + name} for name in query["variables"]["files"]]
                answer = {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        elif "file_stream" in self.path:
            self.server.streams.append(json.loads(body))
            history = self.server.streams[-1].get("files", {}).get("wandb-history.jsonl", {})
            self.server.rows += [json.loads(line) for line in history.get("content", [])]
            answer = {}
        elif self.path.startswith("/upload/"):
            self.server.uploads[self.path.removeprefix("/upload/")] = body
        self.reply(200, answer)

    do_GET = do_PUT = do_POST

    def reply(self, status, answer):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behaviour, bucket=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.bucket, self.closing = behaviour, bucket, threading.Event()
        self.requests, self.rows, self.uploads, self.streams = [], [], {}, []

    def handle_error(self, request, client_address):
        pass  # a client that was killed

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def clean_environment(home, url, key):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "WANDB_CONFIG_DIR": str(home / "wandb-config")}
    environment |= {"WANDB_BASE_URL": url, "NO_PROXY": "127.0.0.1"} | ({"WANDB_API_KEY": key} if key else {})
    return environment


def train(run_dir, url, key=KEY, netrc=False, environment=(), **changes):
    """One run of TRAINER: what it printed, what it logged, how long it took."""
    home = run_dir.parent / f"home-{run_dir.name}"
    home.mkdir(exist_ok=True)
    run_dir.mkdir(exist_ok=True)
    (run_dir / "curves.png").write_bytes(PICTURE)
    if netrc:
        host = url.removeprefix("http://")
        (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {key}\n")
        (home / ".netrc").chmod(0o600)
    case = {"run_dir": str(run_dir), "resume": None, "config": CONFIG, "mode": "auto", "first": 1, "last": 30}
    case |= {"seconds": 0.0, "kill_child": False, "signal_all": False, "die": False, "summary": SUMMARY} | changes
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, json.dumps(case)],
        cwd=REPOSITORY,
        env=clean_environment(home, url, None if netrc else key) | dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
    )
    figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    return figures | {
        "dir": run_dir,
        "wall": time.monotonic() - start,
        "code": done.returncode,
        "out": done.stdout,
        "err": done.stderr.splitlines(),
        "warnings": [line for line in done.stderr.splitlines() if " WARNING " in line],
        "left": left_behind(figures.get("child")),
    }


def left_behind(child):
    """W&B processes that a tracker's process started, or itself, and that are still there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().split(b"\0")
            own = b"--pid" in line and line[line.index(b"--pid") + 1] == str(child).encode()
            if entry.name == str(child) or own:
                found.append(b" ".join(line))
    return found


def inspect(segment):
    """The records of an offline segment, as W&B's own reader prints them."""
    (file,) = segment.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def segments(run_dir):
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def history(records):
    return [r["history"]["item"] for r in records if r["type"] == "history"]


def sync(segment, url, home):
    command = [sys.executable, "-m", "wandb", "sync", str(segment)]
    environment = clean_environment(home, url, KEY)
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)


def a_picture():
    import matplotlib

    matplotlib.use("Agg")
    from io import BytesIO

    from matplotlib.figure import Figure

    buffer = BytesIO()
    Figure(figsize=(1, 1)).savefig(buffer, format="png")
    return buffer.getvalue()


PICTURE = a_picture()
