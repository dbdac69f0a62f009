"""The loop of a run: step, evaluate, log, save, stop, in this order; back to a checkpoint where it diverges."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.batching.plan import BatchPlan
from launcher.batching.splits import Split, first_infinite
from launcher.batching.stream import CanonicalStream, Stream
from launcher.data.source import Data
from launcher.distributed import slurm
from launcher.distributed.collectives import at_every_rank
from launcher.distributed.pulse import pulse
from launcher.distributed.rendezvous import by_rank_0
from launcher.distributed.stop_request import StopRequest
from launcher.run import gallery
from launcher.run.pruning import PRUNED, Pruning
from launcher.run.rank_zero import RankZero
from launcher.tasks.mirrored import Mirrored
from launcher.training import checkpoint
from launcher.training.clock import Clock
from launcher.training.divergence import Diverged
from launcher.training.evaluation import Evaluation, Evaluator
from launcher.training.hooks import Hooks
from launcher.training.progress import Progress, Rules, rules_of
from launcher.training.resume import best_beside, gather_state, go_back, state_before_row
from launcher.training.trainer import Trainer

NOTICE = 60.0  # seconds that slurm/train.sbatch leaves for a stop at least: SIGUSR1@120, up to a minute of it late
EACH_SAMPLE = 1_000_000  # of the test split, at most, of which a run keeps what was found of each: 9 bytes
REPORT_SECONDS = 5.0  # what the end of a stopped run takes beside the save: its pictures and page


@dataclass(frozen=True)
class LoopSettings:
    """What happens when. Plain numbers: reading them from the config costs more than a small model's kernels.

    Updates between two of a kind are counted from the run's start; 0: never. The last update of a run counts for each
    kind but `watch_every`, of which nothing could be taken back by a longer run.
    """

    total_steps: int  # updates of the whole run
    eval_every: int
    log_every: int
    save_every: int
    watch_every: int  # between two histograms of gradients and weights
    rules: Rules  # which checkpoint is the best, and how long to wait for an improvement
    max_rollbacks: int  # how often the run may go back to a checkpoint; 0: it stops where it diverges
    test_time_flip: bool  # whether the test split is evaluated by two looks at each image
    pruning: Pruning | None  # by which a search ends the trials that are not worth going on with

    @classmethod
    def of(cls, settings: Any, plan: BatchPlan, total_steps: int) -> "LoopSettings":
        """Those of a run's config."""
        return cls(
            total_steps=total_steps,
            eval_every=plan.interval(settings.eval_every),
            log_every=plan.interval(settings.log_every),
            save_every=plan.interval(settings.checkpoint.every),
            watch_every=settings.wandb.watch_every if settings.wandb.watch else 0,
            rules=rules_of(settings),
            max_rollbacks=settings.divergence.max_rollbacks if settings.divergence.action == "rollback" else 0,
            test_time_flip=settings.test_time_flip,
            pruning=Pruning(**settings.pruning) if settings.pruning else None,
        )


@dataclass
class Loop:
    """What a run does from its first update to its last, on every rank."""

    trainer: Trainer
    samples: Stream | CanonicalStream  # the batches of this rank, from any update on
    plan: BatchPlan
    data: Data
    evaluator: Evaluator
    settings: LoopSettings
    progress: Progress  # another one after a return to a checkpoint
    clock: Clock
    stop: StopRequest
    rank_zero: RankZero
    profiler: torch.profiler.profile | None
    hooks: Hooks | None  # None: a run without them does not pay for a call
    after_row: Callable[[int, Mapping[str, float]], None] | None  # what it raises ends the run
    warned: bool = False  # that it takes long to stop
    before: dict[str, Any] | None = None  # what the evaluation and the log line of this step have changed

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.rank_zero.path / "checkpoints"

    def run(self) -> None:
        """Go on until the run is over or was asked to stop; either way everything is saved then.

        Raises:
            Diverged: Training has, and may not go back to a checkpoint (any more).
        """
        pulse.step, pulse.stopping = self.progress.step, self.stop.seconds
        self.stop.heeded_in = lambda: self.trainer.reduction.stopping_seconds
        while True:
            try:
                self._train()
                break
            except Diverged as error:
                self._go_back(error)
        if self.profiler is not None:
            self.profiler.stop()

    def over(self) -> bool:
        """Whether no update is left to do."""
        return self.progress.step == self.settings.total_steps or self.progress.ended is not None

    def test(self) -> dict[int, Evaluation]:
        """Measure the test split once the run is over: by the last model and, where that is another, by the best.

        From then on the trainer has the weights of the best.

        Returns:
            Step to evaluation, the best first; empty where the run was stopped before its end, or in here.
        """
        ranks, flips = self.trainer.ranks, self.settings.test_time_flip
        with self.clock.during("evaluating"):
            each = len(self.data.test) <= EACH_SAMPLE
            last = self._evaluate(self.data.test, flips, each) if self.over() and self.progress.seen else None
            by_rank_0("the last checkpoint to be written", self.rank_zero.finish_saving, ranks)
            if last is None:
                return {}
            best = best_beside(self.checkpoints, self.progress, ranks)
            if best is None:
                return {self.progress.step: last}
            self.trainer.load_weights(self.trainer.eval_model, checkpoint.load_weights(best))
            found = self.evaluator.evaluate(self._model(flips), self.data.test, self._is_stopped, each)
            return {} if found is None else {checkpoint.step_of(best): found, self.progress.step: last}

    def predict(self, rows: int) -> dict[str, np.ndarray] | None:
        """What the model says of some samples of the test split, as columns of a table; None for no rows."""
        if not rows:
            return None
        test, task, accelerator = self.data.test, self.evaluator.task, self.trainer.accelerator
        size = self.plan.evaluation_size(self.data.tokens)
        model = self._model(self.settings.test_time_flip)
        return gallery.columns(model, test, self.data.input_shape, task, rows, size, accelerator)

    def _train(self) -> None:
        """Do updates until the run is over, or asked to stop."""
        progress, settings = self.progress, self.settings
        if not progress.seen:  # what the run before this one had no time for
            progress.seen = self._evaluate_and_log()
            if not progress.seen or self.over() or self._is_pruned():
                return self._save()
        elif self._is_pruned():  # still: others have come meanwhile, or it was killed before it was told
            return
        if progress.step == 0 and settings.max_rollbacks:  # else what diverges early would have nothing to go back to
            self._save()
        batches = self.samples.batches(progress.step, progress.step if self.over() else settings.total_steps)
        for batch in self.clock.waiting(batches):
            self.trainer.reduction.wants_to_stop = bool(self.stop)
            stopping = self.trainer.step(batch)
            progress.step += 1
            self.before = None
            pulse.step = progress.step
            if self.profiler is not None:
                self.profiler.step()
            if settings.watch_every and progress.step % settings.watch_every == 0:
                self.rank_zero.watch(progress.step, self.trainer.model)
            if self.hooks is not None:
                self.hooks.after_step(progress)
            progress.seen = not (stopping and self._due(settings.eval_every)) and self._evaluate_and_log()
            stopping = stopping or not progress.seen or (settings.pruning is not None and self._is_pruned())
            best = settings.save_every > 0 and progress.best_step == progress.step
            if self._due(settings.save_every) or best or self.over() or stopping:
                self._save()
            if stopping or self.over():
                return

    def _go_back(self, error: Diverged) -> None:
        """Return to the last checkpoint, from which the batch of an update that diverged is left out.

        Raises:
            Diverged: The run has done so as often as it may.
        """
        error.samples = self.samples.samples(error.step)
        (batch,) = self.samples.batches(error.step, error.step + 1)
        broken = any(first_infinite(micro.inputs) is not None for micro in batch.micros)
        trainer, ranks = self.trainer, self.trainer.ranks
        error.broken = any(at_every_rank(broken, ranks.world_size))
        if trainer.rollbacks.count >= self.settings.max_rollbacks:
            error.left_out = self.settings.max_rollbacks
            raise error
        self.rank_zero.warn("%s\nGoing back to the last checkpoint.", error.what())
        self.rank_zero.wait_for_checkpoint()
        trainer.rollbacks.go_back(error.step)
        self.progress = go_back(self.checkpoints, trainer, self.hooks)
        self.rank_zero.go_back(self.progress.recorded)
        self.clock.go_back(self.progress.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.progress.step % every == 0 or self.over())

    def _is_stopped(self) -> bool:
        return bool(self.stop)

    def _is_pruned(self) -> bool:
        """Whether a search ends the run at this evaluation, which is then a request to stop, on every rank."""
        pruning, progress = self.settings.pruning, self.progress
        if pruning is None or not progress.step or self.over() or not self._due(self.settings.eval_every):
            return False
        keeps = partial(pruning.keeps, progress.step // self.settings.eval_every)
        if by_rank_0("the other trials of the sweep to be compared", keeps, self.trainer.ranks):
            return False
        self.stop.reason = self.stop.reason or PRUNED
        return True

    def _model(self, flips: bool) -> nn.Module:
        """What is measured; with `flips` by two looks at each image."""
        return Mirrored(self.trainer.eval_model) if flips else self.trainer.eval_model

    def _evaluate(self, split: Split, flips: bool = False, by_sample: bool = False) -> Evaluation | None:
        """Measure the model as it is now, unless it has diverged; None where the run was asked to stop meanwhile."""
        self.trainer.check()
        self.trainer.sync_ema_buffers()
        return self.evaluator.evaluate(self._model(flips), split, self._is_stopped, by_sample)

    def _evaluate_and_log(self) -> bool:
        """Evaluate and log where it is due, as one row of the record. False where it was interrupted, with no row."""
        progress, schedule, settings = self.progress, self.trainer.schedule, self.settings
        metrics: dict[str, float] = {}
        if self._due(settings.eval_every) or self._due(settings.log_every):
            self.before = state_before_row(self.trainer, progress, self.hooks)
        if self._due(settings.eval_every):
            with self.clock.during("evaluating"):
                evaluation = self._evaluate(self.data.validation)
            if evaluation is None:
                return False
            metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
            progress.note(metrics, **settings.rules["best"])
            progress.watch(metrics, **settings.rules["patience"])
            if schedule.metric is not None:
                schedule.observe(metrics[schedule.metric])
            if self.hooks is not None:
                self.hooks.after_evaluation(progress, metrics)
        if self._due(settings.log_every):
            metrics = self.trainer.read_metrics() | metrics
        logged = self._logged() if self.hooks is not None else {}
        if metrics:
            timing = self.clock.row(progress.step, self.plan)
            self.rank_zero.row(progress.step, metrics | {"lr": self.trainer.lr} | logged, timing)
            if self.after_row is not None:
                self.after_row(progress.step, metrics)
        elif logged:
            self.rank_zero.row(progress.step, logged, {})
        return True

    def _logged(self) -> dict[str, float]:
        """The numbers that hooks have logged at this step, on rank 0; what else they have is kept."""
        assert self.hooks is not None
        if self.over():
            self.hooks.at_end(self.progress)
        numbers = {name: value for name, value in self.hooks.logged.items() if isinstance(value, int | float)}
        if others := {name: value for name, value in self.hooks.logged.items() if name not in numbers}:
            self.rank_zero.show_media(self.progress.step, others)
        return numbers

    def _save(self) -> None:
        trainer = self.trainer
        with self.clock.during("saving"):
            state = gather_state(trainer, self.progress, self.before, self.hooks)
            state |= {"over": self.over(), "rules": self.settings.rules}
            weights = trainer.weights(trainer.eval_model)
            # The best of a run that is prolonged, to which its last evaluation does not count.
            before = self.before["progress"]["best_step"] if self.before is not None and self.over() else None
            best = [step for step in (self.progress.best_step, before) if step is not None]
            write = partial(self.rank_zero.save, self.progress.step, weights, state, best)
            seconds = by_rank_0("the checkpoint before this one to be written", write, trainer.ranks)
            self.stop.reserve = REPORT_SECONDS + 2 * seconds
        if not self.warned and slurm.job_name(os.environ) and self.stop.seconds() > NOTICE:
            self.warned = True
            self.rank_zero.warn(
                "slow       to stop takes this run about %.0f s: let SLURM say so as long before, by cluster.signal or "
                "sbatch --signal=USR1@%d", self.stop.seconds(), 1.2 * self.stop.seconds() + 60,
            )  # fmt: skip
