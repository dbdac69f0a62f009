"""The trials of a sweep on a Ray cluster: each in a slot of its own, once, whatever dies."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.distributed.stop_request import StopRequest
from launcher.ray_cluster.placement import Shape, Slot
from launcher.ray_cluster.ray_options import RayOptions
from launcher.ray_cluster.trial_on_ray import Start, TrialOnRay
from launcher.slurm.snapshot import Snapshot
from launcher.slurm.task_file import write_task
from launcher.sweep.executor import PEERS, POLL
from launcher.sweep.feed import Feed
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.trial_queue import WORDS, TrialQueue
from launcher.sweep.trials import Trial

PATIENCE = 60.0  # seconds in which an actor answers that it has killed its rank, or is taken for dead


class RayExecutor(TrialQueue):
    """Runs trials until each is finished, failed, or the sweep was asked to stop.

    Args:
        trials: To be run, those that are done left out.
        options: Of the launcher; its cluster has been joined.
        code: What the trials run.
        tasks: Directory for what each trial needs to start.
        start: What the start of every trial has in common.
        display: Of the sweep.
        max_time: Seconds that a trial may take.
        feed: What comes when no trial waits, one at a time.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        options: RayOptions,
        code: Snapshot,
        tasks: Path,
        start: Start,
        display: ProgressDisplay,
        feed: Feed | None = None,
    ) -> None:
        super().__init__(trials, display, feed)
        self.options, self.code, self.tasks, self.start = options, code, tasks, start
        self.running: list[TrialOnRay] = []
        self.slots: dict[Shape, Slot] = {}  # asked for, or there and without a trial yet: one of each shape
        self.waiting_since = time.monotonic()  # since when nothing runs, or when it was last said that nothing does

    def run(self, stop: StopRequest, max_time: float | None) -> None:
        """Run all trials to their ends, or until it is asked to stop; each may take `max_time` seconds."""
        try:
            while self.running or (self.has_more() and not stop):
                if not stop:
                    self._start_what_fits()
                ready = self._wait()
                for run in list(self.running):
                    self._supervise(run, ready, stop.reason, max_time)
                self.display.update([(run.trial, run.started) for run in self.running])
        finally:
            for slot in self.slots.values():
                slot.give_back()
            self.slots.clear()

    def _start_what_fits(self) -> None:
        """Ask Ray for room for what comes next, one trial of each shape at a time, and start it where that is there.

        Room for all would be kept from others who share the cluster; and a search chooses when there is room.
        """
        waiting: dict[Shape, Trial] = {}
        for trial in list(self.queue):
            shape = self.options.shape(trial)
            if shape not in waiting and self.is_ours(trial):
                waiting[shape] = trial
        if not self.queue and self.feed is not None and not self.feed.over:
            waiting = {self.options.shape(self.feed.like): self.feed.like}
        for shape in [shape for shape in self.slots if shape not in waiting]:
            self.slots.pop(shape).give_back()
        for shape, trial in waiting.items():
            if len(self.running) >= (self.options.max_parallel or len(self.running) + 1):
                return
            if shape not in self.slots:
                self.slots[shape] = Slot(shape)
            if self.slots[shape].is_ready:
                chosen = trial if trial in self.queue else self._next_of_feed()
                if chosen is not None:
                    self._start(chosen, self.slots.pop(shape))
        self._say_that_nothing_runs()

    def _next_of_feed(self) -> Trial | None:
        """What a search chooses now; None where that is nothing, or may not start yet."""
        assert self.feed is not None
        if (trial := self.feed.next()) is None:
            return None
        self.queue.append(trial)
        return trial if self.is_ours(trial) else None

    def _say_that_nothing_runs(self) -> None:
        now = time.monotonic()
        if self.running:
            self.waiting_since = now
        elif now - self.waiting_since > 60 and self.slots:
            self.display.note("waiting    for room on the Ray cluster (ray status tells who has it)")
            self.waiting_since = now

    def _start(self, trial: Trial, slot: Slot) -> None:
        self.queue.remove(trial)
        task = self.tasks / f"{trial.index}.json"
        try:
            self.prepare(trial)
            write_task(task, trial, self.code)
        except OSError as error:
            slot.give_back()
            self.could_not_prepare(trial, error)
            return
        word = WORDS.get(trial.state, "resumed")
        self.running.append(TrialOnRay(trial, slot, task, self.start, word))
        trial.lifecycle.start()

    def _wait(self) -> list[object]:
        """What has come of that which the trials wait for, as soon as one of them has something, or after a while."""
        import ray

        waited = [call for run in self.running for call in run.waited]
        if not waited:
            time.sleep(POLL)
            return []
        found: list[object] = ray.wait(waited, num_returns=1, timeout=POLL)[0]
        if found:
            found = ray.wait(waited, num_returns=len(waited), timeout=0)[0]
        return found

    def _supervise(
        self, run: TrialOnRay, ready: Sequence[object], stopping: str | None, max_time: float | None
    ) -> None:
        """Look after a trial: take it off the list where it has ended, end it where it should and does not."""
        now, patience = time.monotonic(), max(PATIENCE, run.trial.timeout)
        ended = run.note(ready, now)
        if run.hosts and run.word:
            self.display.say(run.trial, f"{run.word} on {run.trial.kind} of {', '.join(run.hosts)}")
            run.word = ""
        if ended:
            self.running.remove(run)
            self._end(run, stopping)
        elif stopping and run.asked is None:
            run.ask_to_stop(now)
        elif run.asked is not None and now - run.asked > patience:
            run.kill(f"did not stop within {patience:.0f} s of being asked to")
        elif run.first_failure is not None and now - run.first_failure > PEERS:
            run.send(signal.SIGKILL)  # why the first rank failed stays the reason
        elif max_time is not None and run.asked is None and now - run.started > max_time:
            run.killed = f"took longer than hydra.launcher.max_time_per_run ({max_time:g} s)"
            run.ask_to_stop(now)

    def _end(self, run: TrialOnRay, stopping: str | None) -> None:
        """Say how a trial ended, or put it back into the queue."""
        trial, seconds = run.trial, time.monotonic() - run.started
        run.give_back()
        again = run.was_lost or (self.feed is not None and run.was_shot)
        if run.went_as_wanted(asked=run.asked is not None or stopping is not None):
            trial.lifecycle.end(trial.found())
        elif again and not stopping and self.may_retry(trial):
            trial.lifecycle.end(trial.found())
            self.queue.insert(0, trial)
            self.display.say(trial, f"goes back into the queue ({run.failure()})")
            return
        elif again and stopping:
            trial.lifecycle.end(trial.found())  # it goes on with the next start
        else:
            self.note_failure(run, [run.statuses[rank] for rank in range(trial.world)], seconds)
        self.note_end(trial, seconds)
