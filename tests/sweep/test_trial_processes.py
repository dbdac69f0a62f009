"""The processes of a trial: here forked from this one, and told what to do."""

import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from launcher.core.compat_python import stop_fork_server
from launcher.sweep.failure import OUTPUT
from launcher.sweep.fork_server import warm_up
from launcher.sweep.trial_processes import TrialProcesses
from launcher.sweep.trial_state import State, TrialState
from launcher.sweep.trials import TRAINING, Program, Trial

FORK = multiprocessing.get_context("fork")


def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


@pytest.fixture
def begin(tmp_path):
    """The processes of a trial, one for each function."""
    begun = []

    def begin(*functions):
        ranks = [FORK.Process(target=function) for function in functions]
        for rank in ranks:
            rank.start()
        begun.extend(ranks)
        return TrialProcesses(SimpleNamespace(path=tmp_path), [], ranks=ranks, pulses=[[0.0, 0.0, 0.0] for _ in ranks])

    yield begin
    for rank in begun:
        rank.kill()
        rank.join()


def wait(run):
    deadline = time.monotonic() + 20
    while not run.note_ended(time.monotonic()):
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.01)


def ended(status):
    return lambda: os._exit(status)


def test_all_ranks_have_to_end_well(begin):
    good = begin(ended(0), ended(0))
    wait(good)
    assert good.statuses == [0, 0] and good.went_as_wanted(asked=False) and good.first_failure is None
    bad = begin(ended(0), ended(3))
    wait(bad)
    assert not bad.went_as_wanted(asked=True) and bad.first_failure is not None
    assert bad.failure() == "rank 1 ended with exit status 3"


def test_the_first_rank_that_failed_gives_the_reason(begin, tmp_path):
    run = begin(lambda: (time.sleep(1), os._exit(1)), lambda: os.kill(os.getpid(), signal.SIGKILL))
    wait(run)
    assert run.ended == [1, 0] and "rank 1 was killed by SIGKILL, perhaps by the system" in run.failure()
    said = begin(ended(1))
    (tmp_path / OUTPUT).write_text("Traceback ...\nfailed: a wheel came off\nfailed: later\n")
    wait(said)
    assert said.failure() == "a wheel came off"


def test_to_end_by_the_signal_is_well_only_where_it_was_asked_for(begin):
    run = begin(lambda: time.sleep(60))
    run.ask_to_stop(time.monotonic())
    wait(run)
    assert run.went_as_wanted(asked=True) and not run.went_as_wanted(asked=False)


def test_why_it_was_killed_is_the_reason(begin):
    run = begin(stubborn)
    time.sleep(0.2)
    run.ask_to_stop(time.monotonic())
    time.sleep(0.2)
    assert not run.note_ended(time.monotonic())
    run.kill("it was late")
    run.kill("and later")
    wait(run)
    assert run.failure() == "it was late" and not run.went_as_wanted(asked=True)


def test_a_port_or_directory_taken_by_another_is_an_accident(begin, tmp_path):
    run = begin(ended(2))
    wait(run)
    assert not run.ended_by_accident()
    (tmp_path / OUTPUT).write_text("error: hydra.run.dir=x: a run is in it")
    assert run.ended_by_accident()


def test_what_it_writes_and_what_its_threads_tell_are_signs_of_life(begin, tmp_path):
    run = begin(lambda: time.sleep(60))
    run.pulses[0][1] = 1.0  # after its first update: CPU time says nothing any more
    time.sleep(0.05)
    assert not run.is_silent(time.monotonic(), 0.0) and run.is_silent(time.monotonic() + 1, 0.5)
    (tmp_path / OUTPUT).write_text("a line\n")
    assert not run.is_silent(time.monotonic() + 1, 0.5)
    run.pulses[0][0] += 1
    assert not run.is_silent(time.monotonic() + 1, 0.5)
    assert run.is_silent(time.monotonic() + 1, 0.5) and not run.is_silent(time.monotonic(), 5)


def add(first, second):
    print(f"{'json' in sys.modules} {'torch' in sys.modules} {os.environ.get('RANK')} {os.environ['GIVEN']}")
    return first + second


def nothing_there(path):
    return State.NEW


def test_a_program_of_any_kind_runs_in_processes_forked_from_a_server_that_has_imported_what_it_says(tmp_path):
    """One process for two devices; it returns 3 + 4, and torch, which the training would have, is not there."""
    program = Program(f"{__name__}.add", "json", nothing_there, shared=(3,), one_process=True)
    trial = Trial(0, [], "", tmp_path, 2, "cpu", 1, math.inf, None, 0, pickle.dumps((4,)), TrialState(State.NEW))
    trial.program = program
    assert trial.processes == 1 and trial.found() == State.NEW
    try:
        warm_up(program.preload)
        run = TrialProcesses(trial, [])
        run.start({**os.environ, "GIVEN": "here"}, [])
        wait(run)
    finally:
        stop_fork_server()
    assert run.statuses == [7] and run.pulses == []
    assert run.printed.splitlines() == ["True False None here"]


def test_the_training_is_one_of_the_programs(tmp_path):
    trial = Trial(0, [], "", tmp_path, 2, "cpu", 1, 60.0, None, 0, b"", TrialState(State.NEW))
    assert trial.program is TRAINING and trial.processes == 2 and trial.found() == State.NEW
    (tmp_path / "failed.json").write_text("{}")
    assert trial.found() == State.FAILED
