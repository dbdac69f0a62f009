"""What is shown while a run goes on: on real pseudo-terminals of several sizes, and on pipes."""

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from launcher.run import terminal
from launcher.run.terminal import Progress, final_table

ROOT = Path(terminal.__file__).parents[2]
SUMMARY = {
    "status": "finished",
    "step": 40,
    "epoch": 4.0,
    "samples_per_second": 12345.0,
    "peak_memory_mb": 2048.4,
    "world_size": 2,
    "final": {"train/loss": 0.025, "test/accuracy": 0.975},
    "best": {"eval/loss": 0.0125},
}
TRAINER = """
import json, logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=getattr(sys, sys.argv[2]))
from contextlib import closing
from launcher.run.terminal import Progress, final_table
with closing(Progress(40, 0, 10)) as progress:
    for step in range(1, 41):
        row = {"step": step, "epoch": step / 10, "train/loss": 1 / step, "lr": 0.1, "samples_per_second": 12345.6}
        if step % 10 == 0:
            row |= {"eval/loss": 0.5 / step, "eval/accuracy": 1 - 1 / step}
        progress.update(row)
        if step == 15:
            logging.info("checkpoint [bold]15[/bold] saved " + "x" * 100)
        time.sleep(float(sys.argv[3]))
    progress.close()
    final_table(json.loads(sys.argv[1]))
logging.info("after the end")
"""


def arguments(stream="stderr", pause=0.01):
    return [sys.executable, "-c", TRAINER, json.dumps(SUMMARY), stream, str(pause)]


def environment(**changes):
    kept = {k: v for k, v in os.environ.items() if k not in ("TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    return kept | changes


def on_terminal(columns, term="xterm-256color", stream="stderr", resize=None, pause=0.01):
    """Everything that a run writes to a pseudo-terminal, and its exit status."""
    controller, terminal_end = pty.openpty()
    fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        arguments(stream, pause),
        stdin=terminal_end,
        stdout=terminal_end,
        stderr=terminal_end,
        env=environment(TERM=term),
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(terminal_end)
    if resize:

        def shrink():
            time.sleep(0.7)
            fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", 24, resize, 0, 0))
            os.kill(process.pid, signal.SIGWINCH)

        threading.Thread(target=shrink).start()
    written = b""
    try:
        while part := os.read(controller, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(controller)
    return written.decode(), process.wait(timeout=20)


def screen(written):
    """The lines that a terminal would have shown at some time, without what steers it."""
    text = re.sub(r"\x1b\[2K|\x1b\[1A", "\n", written).replace("\r", "\n")
    return [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n") if line.strip()]


@pytest.mark.parametrize("columns", [200, 80, 40, 20])
def test_the_bar_fits_the_terminal_and_is_redrawn_in_place(columns):
    written, status = on_terminal(columns)
    assert status == 0
    bars = [line for line in screen(written) if "━" in line or "╸" in line]
    assert any("step 40/40" in line for line in bars)
    assert all(len(line.rstrip()) <= columns for line in bars), bars
    assert "\x1b[2K" in written
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor comes back
    if columns == 200:
        last = bars[-1]
        for expected in ("epoch 4.00/4", "loss 0.025", "lr 0.1", "12.3k samples/s", "eval/accuracy 0.975"):
            assert expected in last
        assert any(re.search(r"0:00:0\d left", line) for line in bars)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_log_messages_stand_above_the_bar_whole_and_as_they_are(stream):
    written, _ = on_terminal(80, stream=stream)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n").split("\n")
    assert "checkpoint [bold]15[/bold] saved " + "x" * 100 in lines
    assert "after the end" in lines
    assert "step" not in next(line for line in lines if "checkpoint" in line)


def test_a_terminal_that_shrinks_gets_shorter_lines():
    written, status = on_terminal(120, resize=30, pause=0.05)
    assert status == 0
    bars = [line.rstrip() for line in screen(written) if "━" in line or "╸" in line]
    assert max(map(len, bars[:2])) > 60 and len(bars[-1]) <= 30


def test_the_table_of_the_end():
    written, _ = on_terminal(100)
    lines = screen(written)
    assert any(line.split() == ["test/accuracy", "0.975"] for line in lines)
    assert any("finished, step 40, epoch 4, 12.3k samples/s, 2,048 MB at most, 2 processes" in line for line in lines)


@pytest.mark.parametrize("extra", [{}, {"TERM": "xterm-256color", "FORCE_COLOR": "1", "COLUMNS": "30"}])
def test_a_pipe_gets_plain_lines_without_control_characters(extra):
    done = subprocess.run(arguments(), capture_output=True, env=environment(**extra), cwd=ROOT, timeout=30)
    assert done.returncode == 0
    for output in (done.stdout, done.stderr):
        assert all(byte == 10 or byte >= 32 for byte in output)
    lines = done.stdout.decode("ascii").splitlines()
    # The first row, the four evaluations (the last of them the end): not a line for each of 40 rows.
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "1/40",
        "10/40",
        "20/40",
        "30/40",
        "40/40",
    ]
    assert "eval/accuracy 0.975" in lines[4] and "loss 0.025" in lines[4] and "epoch 4.00/4" in lines[4]
    table = [line.split() for line in lines[5:]]
    assert ["metric", "final", "(step", "40)", "best"] in table and ["test/accuracy", "0.975"] in table
    assert ["eval/loss", "0.0125"] in table


def test_a_dumb_terminal_gets_plain_lines_too():
    written, status = on_terminal(80, term="dumb")
    assert status == 0 and "\x1b" not in written
    assert "step 1/40" in written and "step 10/40" in written and "checkpoint [bold]15[/bold]" in written
    assert "━" not in written and "[--" not in written


def test_a_line_now_and_then_at_a_high_rate(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    progress = Progress(100_000, 0, 1000)
    for step in range(1, 50_001):
        now = 1000 + step / 1000  # a thousand rows a second, for 50 s
        progress.update({"step": step, "train/loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/100000" for n in (1, 10001, 20001, 30001, 40001)]
    assert "0:01:30 left" in lines[1]  # 90,000 steps at a thousand a second


def test_time_left_counts_the_steps_of_this_start_alone(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    progress = Progress(1000, 900, 100)
    progress.update({"step": 910})
    now = 20.0
    progress.update({"step": 930})  # a second each, whatever the 900 took
    assert "0:01:10 left" in capsys.readouterr().out.splitlines()[1]


def test_rows_with_gaps_and_odd_numbers(capsys):
    progress = Progress(10, 0, 3)
    progress.update({"step": 10, "train/loss": float("nan"), "eval/mae": None, "lr": 1e-8})
    (line,) = capsys.readouterr().out.splitlines()
    assert "loss nan" in line and "lr 1e-08" in line and "epoch 3.33/3.333" in line
    final_table({})
    final_table({"status": "failed", "final": None, "best": {"eval/loss": "nan"}})
    assert capsys.readouterr().out.splitlines()[0] == "ended, step ?"


def test_training_outlives_its_reader():
    # head goes after one line. What anyone prints later must not turn the exit status into 120 either.
    code = (
        "import time\nfrom launcher.core.streams import keep_streams\n"
        "from launcher.run.terminal import Progress, final_table\nkeep_streams()\n"
        "progress = Progress(30, 0, 10)\n"
        "for step in range(1, 31):\n    progress.update({'step': step, 'eval/loss': 1.0}); time.sleep(0.02)\n"
        "progress.close(); final_table({}); print('the end')"
    )
    pipeline = 'set -o pipefail; "$0" -c "$1" | head -n 1'
    done = subprocess.run(["bash", "-c", pipeline, sys.executable, code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("step 1/30") and done.returncode == 0 and done.stderr == ""


def test_a_handler_gets_its_stream_back(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("launcher.test_terminal")
    logger.addHandler(handler)
    try:
        with contextlib.closing(Progress(10, 0, 10)):
            assert handler.stream is not stream
        assert handler.stream is stream and sys.stdout is stream
    finally:
        logger.removeHandler(handler)


def test_rich_is_imported_for_a_terminal_alone():
    code = (
        "import sys; from launcher.run.terminal import Progress, final_table\n"
        "p = Progress(2, 0, 1)\np.update({'step': 2})\np.close()\nfinal_table({})\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE).returncode == 0


def test_an_update_between_two_pictures_costs_microseconds(capsys):
    progress = Progress(10**9, 0, 1000)
    row = {"step": 1, "train/loss": 0.5, "lr": 0.1}
    progress.update(row)
    start = time.perf_counter()
    for _ in range(10_000):
        progress.update(row)
    assert (time.perf_counter() - start) / 10_000 < 50e-6  # 1 measured
