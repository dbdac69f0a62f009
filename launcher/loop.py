"""The loop of a run: step, evaluate, log, save, stop, in this order; back to a checkpoint where it diverges."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from launcher.batching.plan import BatchPlan
from launcher.batching.splits import first_infinite
from launcher.batching.stream import ShardedStream, Stream
from launcher.distributed import process_group, slurm
from launcher.distributed.pulse import pulse
from launcher.distributed.stopping import StopRequest
from launcher.distributed.watch import by_rank_0
from launcher.run.reporter import Reporter
from launcher.training import checkpoint
from launcher.training.clock import Clock, Profiler
from launcher.training.divergence import Diverged
from launcher.training.engine import Evaluation, Trainer

log = logging.getLogger("launcher")

NOTICE = 60.0  # seconds that slurm/train.sbatch leaves for a stop at least: SIGUSR1@120, up to a minute of it late
REPORT_SECONDS = 5.0  # what the end of a stopped run takes beside the save: its pictures and page


class Every(NamedTuple):
    """Updates between two of a kind, counted from the run's start; 0: never.

    The last update of a run counts for each kind but `watch`, of which nothing could be taken back by a longer run.

    Plain numbers: reading them from the config in each step takes longer than a small model's kernels.
    """

    evaluate: int
    log: int
    save: int
    watch: int


@dataclass
class Loop:
    """What a run does from its first update to its last. Every rank has one; rank 0 alone has a saver and a keeper.

    Args:
        trainer: Does an update.
        samples: The batches of this rank, from any update on.
        plan: How they are cut.
        progress: How far the run is; another one after a return to a checkpoint.
        total_steps: Updates of the whole run.
        every: When to evaluate, log, save, and look at gradients and weights.
        evaluate: Measures the validation part; None where it was interrupted.
        rules: Which checkpoint is the best, and how long to wait for an improvement.
        max_rollbacks: How often the run may go back to a checkpoint; 0: it stops where it diverges.
        clock: Of this rank.
        stop: True once the run was asked to stop.
        profiler: Traces some steps.
        checkpoints: Directory of the checkpoints.
        saver: Writes them.
        keeper: Writes the record.
        after_row: Called with each row; what it raises ends the run.
    """

    trainer: Trainer
    samples: Stream | ShardedStream
    plan: BatchPlan
    progress: checkpoint.Progress
    total_steps: int
    every: Every
    evaluate: Callable[[], Evaluation | None]
    rules: checkpoint.Rules
    max_rollbacks: int
    clock: Clock
    stop: StopRequest
    profiler: Profiler | None
    checkpoints: Path
    saver: checkpoint.Saver | None
    keeper: Reporter | None
    after_row: Callable[[int, Mapping[str, float]], None] | None
    warned: bool = False  # that it takes long to stop
    before: dict[str, Any] | None = None  # what the evaluation and the log line of this step have changed

    def run(self) -> None:
        """Go on until the run is over or was asked to stop; either way everything is saved then.

        Raises:
            Diverged: Training has, and may not go back to a checkpoint (any more).
        """
        pulse.step, pulse.stopping = self.progress.step, self.stop.seconds
        self.stop.heeded_in = lambda: self.trainer.votes.stopping_seconds
        while True:
            try:
                self._go()
                break
            except Diverged as error:
                error.samples = self.samples.samples(error.step)
                (batch,) = self.samples.batches(error.step, error.step + 1)
                broken = any(first_infinite(micro.inputs) is not None for micro in batch.micros)
                ranks = self.trainer.ranks
                anywhere = process_group.at_rank_0(broken, ranks.world_size, ranks.rank)
                error.broken = process_group.from_rank_0(anywhere and any(anywhere), ranks.world_size)
                if self.trainer.rollbacks.count >= self.max_rollbacks:
                    error.left_out = self.max_rollbacks
                    raise
                if self.saver is not None:
                    log.warning("%s\nGoing back to the last checkpoint.", error.what())
                    with pulse.waits("the last checkpoint to be written"):
                        self.saver.wait()
                self.trainer.rollbacks.go_back(error.step)
                self.progress = checkpoint.go_back(self.checkpoints, self.trainer, self.trainer.ranks)
                if self.keeper is not None:
                    self.keeper.go_back(self.progress.recorded)
                self.clock.go_back(self.progress.step)
        if self.profiler is not None:
            self.profiler.close()

    def over(self) -> bool:
        """Whether no update is left to do."""
        return self.progress.step == self.total_steps or self.progress.ended is not None

    def test(self, measure: Callable[..., Evaluation | None]) -> dict[int, Evaluation]:
        """Measure the test part once the run is over: by the last model and, where that is another, by the best.

        From then on the trainer has the weights of the best.

        Args:
            measure: Measures the model as it is; with `settled`, without a look at the training before.

        Returns:
            Step to evaluation, the best first; empty where the run was stopped before its end, or in here.
        """
        with self.clock.during("evaluating"):
            last = measure() if self.over() and self.progress.seen else None
            by_rank_0("the last checkpoint to be written", self._written, self.trainer.ranks.world_size)
            if last is None:
                return {}
            best = checkpoint.best_beside(self.checkpoints, self.progress, self.trainer.ranks)
            if best is None:
                return {self.progress.step: last}
            self.trainer.load_weights(self.trainer.measured, checkpoint.load_weights(best))
            found = measure(settled=True)
            return {} if found is None else {checkpoint.step_of(best): found, self.progress.step: last}

    def _go(self) -> None:
        progress = self.progress
        if not progress.seen:  # what the run before this one had no time for
            progress.seen = self._look()
            if not progress.seen or self.over():
                return self._save()
        if progress.step == 0 and self.max_rollbacks:  # else what diverges early would have nothing to go back to
            self._save()
        batches = self.samples.batches(progress.step, progress.step if self.over() else self.total_steps)
        for batch in self.clock.waiting(batches):
            self.trainer.wants_to_stop = bool(self.stop)
            stopping = self.trainer.step(batch)
            progress.step += 1
            self.before = None
            pulse.step = progress.step
            if self.profiler is not None:
                self.profiler.step()
            if self.every.watch and progress.step % self.every.watch == 0 and self.keeper is not None:
                self.keeper.watch(progress.step, self.trainer.model)
            progress.seen = not (stopping and self._due(self.every.evaluate)) and self._look()
            stopping = stopping or not progress.seen
            best = self.every.save > 0 and progress.best_step == progress.step
            if self._due(self.every.save) or best or self.over() or stopping:
                self._save()
            if stopping or self.over():
                return

    def _due(self, every: int) -> bool:
        return every > 0 and (self.progress.step % every == 0 or self.over())

    def _look(self) -> bool:
        """Evaluate and log where it is due, as one row of the record. False where it was interrupted, with no row."""
        progress, schedule = self.progress, self.trainer.schedule
        figures: dict[str, float] = {}
        if self._due(self.every.evaluate) or self._due(self.every.log):
            self.before = checkpoint.look(self.trainer, progress)
        if self._due(self.every.evaluate):
            with self.clock.during("evaluating"):
                evaluation = self.evaluate()
            if evaluation is None:
                return False
            figures = {f"eval/{name}": value for name, value in evaluation.figures.items()}
            progress.note(figures, **self.rules["best"])
            progress.watch(figures, **self.rules["patience"])
            if schedule.metric is not None:
                schedule.observe(figures[schedule.metric])
        if self._due(self.every.log):
            figures = self.trainer.read_window() | figures
        if figures:
            timing = self.clock.row(progress.step, self.plan)
            if self.keeper is not None:
                self.keeper.row(progress.step, figures | {"lr": self.trainer.lr}, timing)
            if self.after_row is not None:
                self.after_row(progress.step, figures)
        return True

    def _save(self) -> None:
        with self.clock.during("saving"):
            state = checkpoint.gather_state(self.trainer, self.progress, self.trainer.ranks, self.before)
            weights = self.trainer.weights(self.trainer.measured)
            write = partial(self._write, weights, state)
            seconds = by_rank_0("the checkpoint before this one to be written", write, self.trainer.ranks.world_size)
            self.stop.reserve = REPORT_SECONDS + 2 * seconds
        if not self.warned and slurm.job_name(os.environ) and self.stop.seconds() > NOTICE:
            self.warned = True
            log.warning(
                "slow       to stop takes this run about %.0f s: let SLURM say so as long before, by cluster.signal or "
                "sbatch --signal=USR1@%d", self.stop.seconds(), 1.2 * self.stop.seconds() + 60,
            )  # fmt: skip

    def _write(self, weights: dict[str, Tensor], state: dict[str, Any]) -> float:
        """Begin to write a checkpoint, on rank 0; seconds that the longest one so far has taken."""
        assert self.saver is not None and self.keeper is not None
        record = self.keeper.record
        state |= {"over": self.over(), "rules": self.rules, "record": record.mark()}
        best = [step for step in (self.progress.best_step, self._best_before()) if step is not None]
        self.saver.save(self.progress.step, weights, state, best, record.sync)
        return self.saver.seconds

    def _written(self) -> None:
        """Wait for the last checkpoint, on rank 0."""
        if self.saver is not None:
            self.saver.close()

    def _best_before(self) -> int | None:
        """The best checkpoint of a run that is prolonged, to which its last evaluation does not count."""
        step: int | None = self.before["progress"]["best_step"] if self.before is not None and self.over() else None
        return step
