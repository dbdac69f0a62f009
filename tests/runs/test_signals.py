"""Signals as terminals, shells and clusters send them: to a whole process group, with all that loads samples in it."""

import contextlib
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kill_loop import newest, place
from PIL import Image
from processes import REPOSITORY, rows, summary, train

TRAIN = str(REPOSITORY / "launcher/train.py")
OWN = """
import pathlib, time, torch
from launcher.data import Data, DatasetSplit, TensorSplit

class Samples(torch.utils.data.Dataset):
    def __init__(self, count, slow=0):
        self.count, self.slow = count, slow
    def __len__(self):
        return self.count
    def __getitem__(self, number):
        if number < 0:
            raise ArithmeticError("no such sample")
        if self.slow and number:  # the first is tried before the run
            pathlib.Path("evaluating").touch()
            time.sleep(self.slow)
        return torch.randn(5, generator=torch.Generator().manual_seed(number)) + number % 3, number % 3

def load(slow=0):
    return Data("own", "classification", (5,), 3, *map(DatasetSplit, (Samples(60), Samples(30, slow), Samples(30))))

def in_memory():
    inputs, targets = torch.randn(90, 5, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    parts = [TensorSplit(inputs[a:b] + targets[a:b, None], targets[a:b]) for a, b in ((0, 60), (60, 75), (75, 90))]
    return Data("own", "classification", (5,), 3, *parts)
"""
LONG = ["threads=1", "epochs=100000", "log_every=1", "batch.global_size=14", "hydra.run.dir=run", "eval_every=50",
        "checkpoint.every=500", "wandb.mode=disabled"]  # fmt: skip
KINDS = {
    "memory": ["data._target_=own.in_memory", "model.hidden=[8]"],
    "dataset": ["data._target_=own.load", "model.hidden=[8]", "num_workers=0"],
    "workers": ["data._target_=own.load", "model.hidden=[8]", "num_workers=2"],
    "images": ["data=image_folder", "data.root=images", "data.image_size=8", "model=linear", "num_workers=2"],
}


@pytest.fixture
def here(tmp_path):
    """A working directory with data of every kind."""
    for kind in ("train", "validation"):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            folder = tmp_path / "images" / kind / name
            folder.mkdir(parents=True)
            for number in range(12):
                Image.new("RGB", (10, 10), colour).save(folder / f"{number}.png")
    return place(tmp_path, OWN)


@pytest.fixture(autouse=True)
def nothing_goes_on(tmp_path):
    """What a test that fails has started would run for ever, and slow down all others."""
    yield
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").resolve().is_relative_to(tmp_path):
                os.kill(int(entry.name), signal.SIGKILL)


def wait_for(condition, seconds=60, message=lambda: ""):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, message()
        time.sleep(0.01)
    return found


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def of_session(session):
    """Command lines of the processes of a session, by their ids."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, *_, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def forked(session):
    """The process that workers are forked from, and the workers."""
    found = of_session(session)
    return [pid for pid, words in found.items() if "multiprocessing.forkserver" in words and pid != session]


def nothing_is_left(session):
    wait_for(lambda: not of_session(session), 20, lambda: str(of_session(session)))


def stopped_well(directory, reason):
    """Stopped on request with everything saved."""
    stopped = json.loads((directory / "run/stopped.json").read_text())
    assert stopped["reason"] == reason
    assert stopped["step"] == int(newest(directory).name[5:]) == summary(directory / "run")["step"]
    steps = [row["step"] for row in rows(directory / "run")]
    assert steps == sorted(set(steps)) and steps[-1] <= stopped["step"]


def asked(run, directory, number):
    """Send a signal to the process group of a run, which stops for it."""
    session = run.processes[0].pid
    os.killpg(session, number)
    run.ok(40)
    stopped_well(directory, number.name)
    nothing_is_left(session)


CASES = [
    pytest.param(kind, number, id=f"{kind}-{number.name}", marks=() if number in usual else pytest.mark.soak)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    for kind, usual in {
        "memory": (signal.SIGHUP,), "dataset": (signal.SIGINT,), "images": (signal.SIGUSR1,),
        "workers": (signal.SIGTERM, signal.SIGINT),
    }.items()
]  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_a_signal_to_all_processes_stops_a_run_of_any_kind_of_data(kind, number, here):
    run = train([*LONG, *KINDS[kind]], here)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=run.err)
    assert len(forked(run.processes[0].pid)) == (3 if kind in ("workers", "images") else 0)
    asked(run, here, number)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.soak), 2, pytest.param(3, marks=pytest.mark.soak)])
def test_while_the_workers_start(count, here):
    """As soon as the process that they are forked from is there, which imports torch for seconds; or one, or both."""
    run = train([*LONG, *KINDS["workers"]], here)
    log = here / "run/train.log"  # until that line it forks for git as well
    wait_for(lambda: log.exists() and " batch " in log.read_text(), message=run.err)
    wait_for(lambda: len(forked(run.processes[0].pid)) >= count, message=run.err)
    asked(run, here, signal.SIGTERM)


def test_workers_go_on_until_a_late_vote_is_read(here):
    """As on a GPU, where it is read some updates later."""
    own = here / "own.py"
    own.write_text(own.read_text() + "from launcher.training import reduction\nreduction.MOST['cpu'] = 8\n")
    run = train([*LONG, *KINDS["workers"]], here, 2)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=run.err)
    for process in run.processes:
        os.killpg(process.pid, signal.SIGTERM)
    run.ok(40)
    stopped_well(here, "SIGTERM")
    for process in run.processes:
        nothing_is_left(process.pid)


@pytest.mark.soak
def test_in_an_evaluation(here):
    run = train([*LONG, *KINDS["workers"], "+data.slow=0.2", "eval_every=3"], here)
    wait_for((here / "evaluating").exists, message=run.err)
    asked(run, here, signal.SIGINT)
    assert all("eval/loss" not in row for row in rows(here / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.soak)])
def test_two_ranks(number, here):
    """Each with workers of its own; both get the signal, as under SLURM."""
    run = train([*LONG, *KINDS["workers"]], here, 2)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=run.err)
    sessions = [process.pid for process in run.processes]
    for session in sessions:
        os.killpg(session, number)
    run.ok(40)
    stopped_well(here, number.name)
    for session in sessions:
        nothing_is_left(session)


@pytest.mark.parametrize("slow", [0, 60])
def test_a_killed_run_leaves_no_process(slow, here):
    """torch's workers watch the process that they were forked from, and that waits for them."""
    run = train([*LONG, *KINDS["workers"], f"+data.slow={slow}", "eval_every=3"], here)
    session = run.processes[0].pid
    wait_for((here / "evaluating").exists if slow else lambda: lines(here / "run/metrics.jsonl") > 5, message=run.err)
    run.signal(0, signal.SIGKILL)
    run.wait(10)
    nothing_is_left(session)


def test_a_run_that_fails_leaves_no_process(here):
    code = OWN.replace("if number < 0:", "if number == 7:")
    run = train([*LONG, *KINDS["workers"]], place(here, code)).wait()
    assert run.status == [1] and "ArithmeticError: no such sample" in run.err()
    nothing_is_left(run.processes[0].pid)


def test_a_worker_that_is_killed_is_told_in_a_sentence(here):
    run = train([*LONG, *KINDS["workers"]], here)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=run.err)
    os.kill(max(forked(run.processes[0].pid)), signal.SIGKILL)
    run.wait(30)
    assert run.status == [1] and "was killed by SIGKILL" in run.err() and "num_workers" in run.err()
    assert "Traceback" not in run.err()
    nothing_is_left(run.processes[0].pid)


# --- A terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own; what it starts is known by a variable in its environment."""

    def __init__(self, words, directory, **environment):
        self.mark = f"SHOWN_AT={directory}"
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.environ.update(environment, SHOWN_AT=str(directory), TERM="dumb")
            os.execvp(words[0], words)
        self.read, self.closing = b"", False
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while not self.closing:
            if select.select([self.handle], [], [], 0.1)[0]:
                try:
                    self.read += os.read(self.handle, 65536)
                except OSError:  # nobody has it open any more
                    return

    def close(self):
        """As when its window is closed, or the connection breaks: a hangup."""
        self.closing = True
        self.reader.join()
        os.close(self.handle)
        os.waitpid(self.pid, 0)

    @property
    def text(self):
        return self.read.decode(errors="replace")

    def press(self, keys):
        os.write(self.handle, keys)

    def end(self, seconds=60):
        """Exit status of the command, of which nothing is left."""
        _, status = wait_for(lambda: (found := os.waitpid(self.pid, os.WNOHANG))[0] and found, seconds, self.said)
        wait_for(lambda: not marked(self.mark), 20, lambda: str(marked(self.mark)))
        return os.waitstatus_to_exitcode(status)

    def said(self):
        return self.text


def marked(mark):
    """Command lines of the processes that were started with a variable in their environment, by their ids."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{mark}\0".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("kind", ["workers", pytest.param("images", marks=pytest.mark.soak)])
def test_ctrl_c_in_a_terminal(kind, here):
    shown = Terminal([sys.executable, TRAIN, *LONG, *KINDS[kind]], here)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=shown.said)
    shown.press(b"\x03")
    assert shown.end() == 0, shown.text
    stopped_well(here, "SIGINT")
    assert "everything is saved. To go on" in shown.text and "Traceback" not in shown.text


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.5, 1.0])
def test_ctrl_c_before_there_is_a_run(seconds, here):
    """While Python starts, modules are imported and the config is composed: it ends, without a traceback."""
    shown = Terminal([sys.executable, TRAIN, *LONG, *KINDS["memory"]], here)
    time.sleep(seconds)
    shown.press(b"\x03")
    assert shown.end() in (-signal.SIGINT, 128 + signal.SIGINT, 0), shown.text
    early = ("frozen", "import launcher")  # Python itself had not started yet, or had only just
    assert "Traceback" not in shown.text or any(word in shown.text for word in early), shown.text


@pytest.mark.parametrize("seconds", [0.3, pytest.param(1.0, marks=pytest.mark.soak)])
def test_a_cluster_that_asks_before_there_is_a_run(seconds, here):
    """SIGUSR1 waits until it can be followed: of a rank that it ends nobody could tell that it had not failed."""
    with open(here / "out.txt", "w") as out:
        started = subprocess.Popen([sys.executable, TRAIN, *LONG, *KINDS["memory"]], cwd=here, stdout=out, stderr=out)
    time.sleep(seconds)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(60) == 0, (here / "out.txt").read_text()
    stopped_well(here, "SIGUSR1")


def pressed_twice(words, here):
    """A run or sweep in a terminal that gets Ctrl-C in a slow evaluation, and once more."""
    shown = Terminal([sys.executable, TRAIN, *words, "+data.slow=60", "eval_every=3"], here)
    wait_for((here / "evaluating").exists, message=shown.said)
    shown.press(b"\x03")
    time.sleep(0.8)
    shown.press(b"\x03")
    return shown


# Ctrl-C while a library's own code runs, which makes another error of it, or goes on as if nothing had been.
HIDING = """
def hiding(then):
    import os, signal
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        if then == "fail":
            raise ValueError("something was not there yet")
    return load()
"""


@pytest.mark.parametrize(("then", "status"), [("fail", 130), ("go on", 0)])
def test_ctrl_c_that_a_library_hides(then, status, here):
    (here / "own.py").write_text(OWN + HIDING)
    run = train([*LONG, "data._target_=own.hiding", f"+data.then={then}", "num_workers=0"], here).wait(20)
    assert run.status == [status] and "something was not" not in run.err(), run.err()
    assert status or (summary(here / "run")["status"] == "stopped" and "(SIGINT)" in run.out())


def test_ctrl_c_again_ends_at_once(here):
    shown = pressed_twice([*LONG, *KINDS["workers"]], here)
    assert shown.end(3) == 128 + signal.SIGINT, shown.text
    assert "SIGINT again: ending at once" in shown.text and "Traceback" not in shown.text
    assert "leaked" not in shown.text and not (here / "run/stopped.json").exists()


SWEEP = ["-m", *(w for w in LONG if not w.startswith("hydra.run.dir")), "hydra.sweep.dir=grid", "seed=0,1,2"]


@pytest.mark.parametrize("kind", ["memory", pytest.param("workers", marks=pytest.mark.soak)])
def test_ctrl_c_on_a_sweep(kind, here):
    shown = Terminal([sys.executable, TRAIN, *SWEEP, *KINDS[kind]], here)
    wait_for(lambda: len(list(here.glob("grid/*/metrics.jsonl"))) == 2, message=shown.said)
    shown.press(b"\x03")
    assert shown.end() == 0, shown.text
    assert len(list(here.glob("grid/*/stopped.json"))) == 2 and not list(here.glob("grid/*/failed.json"))


@pytest.mark.parametrize("moment", ["compose and check", "started on"])
def test_ctrl_c_on_a_sweep_that_starts(moment, here):
    """Before its processes' parent has imported anything, and before a trial has done an update: no process is left."""
    shown = Terminal([sys.executable, TRAIN, *SWEEP, *KINDS["memory"]], here)
    wait_for(lambda: moment in shown.text, message=shown.said)
    shown.press(b"\x03")
    assert shown.end() in (0, 128 + signal.SIGINT), shown.text
    assert "Traceback" not in shown.text and not list(here.glob("grid/*/failed.json"))


@pytest.mark.soak
def test_ctrl_c_twice_on_a_sweep_ends_its_trials_at_once(here):
    shown = pressed_twice([*SWEEP, *KINDS["dataset"]], here)
    assert shown.end(5) == 128 + signal.SIGINT, shown.text


@pytest.mark.soak
@pytest.mark.parametrize("launched", ["torchrun", "accelerate"])
def test_ctrl_c_on_a_launcher(launched, here):
    """The launcher passes it on, and ends with a status and a traceback of its own."""
    group = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    }[launched]
    words = [sys.executable, "-m", *group, TRAIN, *LONG, *KINDS["workers"]]
    shown = Terminal(words, here, ACCELERATE_USE_CPU="1")
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 5, message=shown.said)
    shown.press(b"\x03")
    shown.end()
    stopped_well(here, "SIGINT")
    assert "exited unexpectedly" not in shown.text


# --- Who started it goes -------------------------------------------------------------------------------------------


def shell(line, directory, words, record="run/metrics.jsonl", count=1):
    """An interactive shell in a terminal, in which a line was typed that starts a run; it has begun to train."""
    shown = Terminal(["bash", "--norc", "-i"], directory)
    shown.press(line.format(run=shlex.join([sys.executable, TRAIN, *words])).encode() + b"\n")
    wait_for(lambda: sum(lines(file) > 3 for file in directory.glob(record)) >= count, 90, shown.said)
    return shown


def trainer(mark):
    """The id of the process that trains, or conducts a sweep."""
    return min(pid for pid, words in marked(mark).items() if words.startswith(f"{sys.executable} {TRAIN}"))


def goes_on(directory, mark, record="run/metrics.jsonl"):
    """It trains, for more than the second that a run needs to see that its launcher has vanished; then it is ended."""
    time.sleep(2.5)
    files = list(directory.glob(record))
    before = [lines(file) for file in files]
    wait_for(lambda: all(lines(file) > many for file, many in zip(files, before, strict=True)), 20)
    assert not list(directory.glob(f"{Path(record).parent}/stopped.json"))
    os.kill(trainer(mark), signal.SIGTERM)
    wait_for(lambda: not marked(mark), 40, lambda: str(marked(mark)))
    for file in files:
        assert json.loads((file.parent / "stopped.json").read_text())["reason"] == "SIGTERM"


def stops(directory, mark, reason="SIGHUP", record="run/metrics.jsonl"):
    """It stops with everything saved, and nothing is left."""
    wait_for(lambda: not marked(mark), 40, lambda: str(marked(mark)))
    files = list(directory.glob(record))
    assert files
    for file in files:
        stopped = json.loads((file.parent / "stopped.json").read_text())
        assert stopped["reason"] == reason
        assert list(file.parent.glob(f"checkpoints/step_{stopped['step']:08}/model.safetensors"))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("nohup {run} > out.txt 2>&1 &", "workers"),
        pytest.param("nohup {run} > out.txt 2>&1 &", "memory", marks=pytest.mark.soak),
        pytest.param("nohup {run} &", "memory", marks=pytest.mark.soak),  # output in nohup.out
        pytest.param("{run} > out.txt 2>&1 & disown", "workers", marks=pytest.mark.soak),
        pytest.param("setsid {run} > out.txt 2>&1", "workers", marks=pytest.mark.soak),
        pytest.param("sh -c '{run} > out.txt 2>&1 &'", "memory", marks=pytest.mark.soak),
        pytest.param("({run} > out.txt 2>&1 &)", "memory", marks=pytest.mark.soak),
    ],
)
def test_it_goes_on_after_the_terminal_was_closed(line, kind, here):
    shown = shell(line, here, [*LONG, *KINDS[kind]])
    shown.close()
    goes_on(here, shown.mark)


@pytest.mark.parametrize(
    ("line", "kind"),
    [("{run}", "workers"), pytest.param("{run} > out.txt 2>&1 &", "memory", marks=pytest.mark.soak)],
)
def test_it_stops_when_its_terminal_is_closed(line, kind, here):
    """Without nohup: what cannot be written to the terminal any more is in train.log."""
    shown = shell(line, here, [*LONG, *KINDS[kind]])
    shown.close()
    stops(here, shown.mark)
    assert "stopped    at step" in (here / "run/train.log").read_text()


def test_it_goes_on_when_its_shell_exits(here):
    """Not hung up: an interactive bash leaves its background jobs alone then."""
    shown = shell("{run} > out.txt 2>&1 &", here, [*LONG, *KINDS["memory"]])
    shown.press(b"exit\n")
    os.waitpid(shown.pid, 0)
    goes_on(here, shown.mark)


@pytest.mark.soak
@pytest.mark.parametrize("line", ["nohup {run} > out.txt 2>&1 &", "{run}"])
def test_a_sweep_after_the_terminal_was_closed(line, here):
    shown = shell(line, here, [*SWEEP, *KINDS["memory"]], "grid/*/metrics.jsonl", 2)
    shown.close()
    (goes_on if "nohup" in line else stops_by_executor)(here, shown.mark, record="grid/*/metrics.jsonl")


def stops_by_executor(directory, mark, record):
    stops(directory, mark, "SIGTERM", record)


@pytest.mark.soak
def test_trials_stop_when_their_executor_is_killed(here):
    shown = shell("{run} > out.txt 2>&1 &", here, [*SWEEP, *KINDS["memory"]], "grid/*/metrics.jsonl", 2)
    os.kill(trainer(shown.mark), signal.SIGKILL)
    shown.press(b"exit\n")
    shown.close()
    stops(here, shown.mark, "the launching process vanished", "grid/*/metrics.jsonl")


def background(words, directory, **arguments):
    """A command without a terminal, whose run has begun to train."""
    mark = f"SHOWN_AT={directory}"
    started = subprocess.Popen(words, cwd=directory, start_new_session=True, **arguments)
    wait_for(lambda: lines(directory / "run/metrics.jsonl") > 3, 90)
    return started, mark


@pytest.mark.soak
@pytest.mark.parametrize("standard", ["</dev/null >out.txt 2>&1", "<&- >&- 2>&-"])
def test_it_goes_on_without_cron(standard, here):
    """cron's environment, no terminal, and a shell between, which dies."""
    run = shlex.join([sys.executable, TRAIN, *LONG, *KINDS["workers"]])
    words = ["env", "-i", f"HOME={here}", "PATH=/usr/bin:/bin", f"SHOWN_AT={here}", "sh", "-c", f"{run} {standard}; :"]
    cron, mark = background(words, here)
    cron.kill()
    cron.wait()
    goes_on(here, mark)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
@pytest.mark.parametrize("what", ["dies", "Ctrl-C"])
def test_make(what, here):
    run = shlex.join([sys.executable, TRAIN, *LONG, *KINDS["workers"]])
    (here / "Makefile").write_text(f"train:\n\t{run}\n")
    if what == "dies":  # without a terminal, of which it would be the leader: its end would be a hangup
        make, mark = background(["make", "train"], here, env=os.environ | {"SHOWN_AT": str(here)})
        make.kill()
        make.wait()
        goes_on(here, mark)
        return
    shown = Terminal(["make", "train"], here)
    wait_for(lambda: lines(here / "run/metrics.jsonl") > 3, 90, shown.said)
    shown.press(b"\x03")
    stops(here, shown.mark, "SIGINT")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not there")
@pytest.mark.parametrize("how", ["kill-session", pytest.param("kill-server", marks=pytest.mark.soak)])
def test_tmux(how, here):
    """A session that nobody is attached to; its run goes on until the session is killed."""
    run = shlex.join([sys.executable, TRAIN, *LONG, *KINDS["workers"]])
    tmux = ["tmux", "-S", str(here / "socket")]
    subprocess.run([*tmux, "new-session", "-d", run], cwd=here, env=os.environ | {"SHOWN_AT": str(here)}, check=True)
    try:
        wait_for(lambda: lines(here / "run/metrics.jsonl") > 3, 90)
    finally:
        subprocess.run([*tmux, how], check=True)
    stops(here, f"SHOWN_AT={here}")
