"""What rank 0 alone does in a run. Every rank has one of these and calls all of it; on the others nothing happens."""

import logging
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from launcher.config.composed import Composed
from launcher.distributed.collectives import at_rank_0
from launcher.distributed.pulse import pulse
from launcher.distributed.ranks import Ranks
from launcher.run import logs, provenance, run_directory

if TYPE_CHECKING:  # they bring torch, before which what is wrong with the settings is said
    import numpy as np
    import torch
    from torch import Tensor, nn

    from launcher.batching.plan import BatchPlan
    from launcher.build import Parts
    from launcher.run.reporter import Reporter
    from launcher.training.clock import Clock
    from launcher.training.evaluation import Evaluation
    from launcher.training.progress import Progress
    from launcher.training.saver import Saver

log = logging.getLogger("launcher")

P = ParamSpec("P")


def _on_rank_0(method: Callable[Concatenate["RankZero", P], None]) -> Callable[Concatenate["RankZero", P], None]:
    """A method that does nothing on the other ranks."""

    @wraps(method)
    def called(self: "RankZero", *arguments: P.args, **named: P.kwargs) -> None:
        if self.writes:
            method(self, *arguments, **named)

    return called


class RankZero:
    """The log, the run directory, the record and the checkpoints of a run, which rank 0 writes.

    As a context it ends a run that went well: rank 0 draws the pictures, which may take long, and lets go of the
    directory. After a failure the directory stays locked until the process has ended, since a checkpoint may still be
    on its way to the disk.

    Args:
        composed: The config, as far as it is known.
        ranks: Which rank this is.

    Attributes:
        writes: Whether this is rank 0.
        path: The run directory, once it is open.
        complete: Whether the run in it is complete, and nothing is left to do.
    """

    directory: run_directory.RunDirectory
    reporter: "Reporter"
    saver: "Saver"

    def __init__(self, composed: Composed, ranks: Ranks) -> None:
        self.composed, self.ranks, self.writes = composed, ranks, ranks.rank == 0
        self.path, self.complete = Path(), False
        self._log = logs.Log(composed, ranks.rank)
        self._class_names: list[str] | None = None
        self._outcome: str | None = None  # the last line of a run that is finished

    def __enter__(self) -> "RankZero":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end()

    def open_directory(self, composed: Composed, parts: "Parts") -> Path:
        """Make the run directory, or take up the one that is there, on every rank; see `run_directory.open_for_all`."""
        self.composed, self._class_names = composed, parts.data.class_names
        opened, self.path, self.complete = run_directory.open_for_all(composed, parts, self.ranks)
        if opened is not None:
            self.directory = opened
        return self.path

    @_on_rank_0
    def announce(self, parts: "Parts", device: "torch.device") -> None:
        """Begin the log file, say what the run is made of, and keep where it came from."""
        data, model, path = parts.data, parts.model, self.path
        self._log.begin_file(path)
        log.info("run        %s%s", path, ", resumed" if self.directory.found.resumed else "")
        if self.composed.adopted:
            log.info("adopted    %s, as accelerate launch was asked to", " ".join(self.composed.adopted))
        log.info("data       %s", data)
        for line in self.directory.notes:
            log.warning("found      %s", line)
        for note in data.notes:
            log.warning("note       %s", note)
        if not self.complete:
            for line in provenance.write(path, self.composed.plain(), data, self.ranks.world_size, device):
                log.warning("changed    %s", line)
        count = sum(parameter.numel() for parameter in model.parameters())
        log.info("model      %s, %s parameters", type(model).__name__, f"{count:,}")
        for line in parts.begun:
            log.info(line)

    @_on_rank_0
    def begin(self, progress: "Progress", total_steps: int, steps_per_epoch: int, device: "torch.device") -> None:
        """Open the record, the trackers and the terminal's bar, and make ready to save."""
        from launcher.run.reporter import Reporter
        from launcher.training.saver import Saver, Staging

        how = self.composed.settings.checkpoint
        self.saver = Saver(self.path / "checkpoints", how.keep, how.max_failures, Staging.for_device(device))
        self.reporter = Reporter(self.directory, self.composed, progress, total_steps, steps_per_epoch)

    def profiler(self) -> "torch.profiler.profile | None":
        """A profiler of rank 0, where the settings ask for it."""
        from launcher.training.clock import start_profiler

        return start_profiler(self.path / "trace.json") if self.writes and self.composed.settings.profile else None

    @_on_rank_0
    def row(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Write a row of the record, and of the timings where it is not empty, and show it."""
        self.reporter.row(step, metrics, timing)

    @_on_rank_0
    def show_media(self, step: int, logged: Mapping[str, Any]) -> None:
        """Keep images and histograms, and show them."""
        self.reporter.show_media(step, logged)

    @_on_rank_0
    def watch(self, step: int, model: "nn.Module") -> None:
        """Keep histograms of gradients and weights."""
        self.reporter.watch(step, model)

    @_on_rank_0
    def warn(self, message: str, *values: Any) -> None:
        """Say something in the log, once and not once per rank."""
        log.warning(message, *values)

    def save(
        self, step: int, weights: "Mapping[str, Tensor]", state: Mapping[str, Any], best: Collection[int]
    ) -> float:
        """Begin to write a checkpoint that counts on the record as it is now; for rank 0 inside of `by_rank_0`.

        Args:
            step: Updates done.
            weights: Of the eval model.
            state: Everything else.
            best: Steps of the checkpoints to keep whatever their age.

        Returns:
            Seconds that the longest save so far has taken.
        """
        record = self.reporter.record
        self.saver.save(step, weights, {**state, "record": record.mark()}, best, record.sync)
        return self.saver.seconds

    @_on_rank_0
    def finish_saving(self) -> None:
        """See `Saver.close`."""
        self.saver.close()

    @_on_rank_0
    def wait_for_checkpoint(self) -> None:
        """Wait until nothing is being written."""
        with pulse.waits("the last checkpoint to be written"):
            self.saver.wait()

    @_on_rank_0
    def go_back(self, recorded: int) -> None:
        """Forget the rows after a step, which will come again."""
        self.reporter.go_back(recorded)

    def conclude(
        self,
        progress: "Progress",
        plan: "BatchPlan",
        clock: "Clock",
        stop_reason: str | None,
        tested: "Mapping[int, Evaluation]",
        predictions: "Mapping[str, np.ndarray] | None",
    ) -> None:
        """Write the summary, on every rank: one of them has heard the signal, and one has taken most memory.

        Args:
            progress: How far the run has come.
            plan: How its batches are cut.
            clock: What it took.
            stop_reason: What asked this rank to stop; None where nothing has.
            tested: Step to evaluation of the test split, the best first; empty where the run was stopped.
            predictions: Columns of a table for W&B.
        """
        import torch

        told = at_rank_0((stop_reason, clock.memory.mb()), self.ranks.world_size, self.ranks.rank)
        if told is None:
            return
        summary = {
            "status": "finished" if tested else "stopped",
            "step": progress.step,
            "best_step": progress.best_step,
            "epoch": progress.step / plan.steps_per_epoch,
            "samples_seen": plan.samples_seen(progress.step),
            "world_size": self.ranks.world_size,
            "global_batch_size": plan.global_size,
            "per_device_batch_size": plan.per_device_size,
            "accumulation_steps": plan.accumulation_steps,
            "threads": torch.get_num_threads(),
            **({"reason": progress.ended} if progress.ended else {}),
            **clock.totals(progress.step, plan, [memory for _, memory in told]),
            **provenance.summary(),
        }
        self.reporter.close(summary, progress, tested, self._class_names, predictions)
        if tested:
            ended = f"{progress.ended}; " if progress.ended else ""
            self._outcome = f"finished   {ended}{self.path / 'report.html'}"
        else:
            reason = next((reason for reason, _ in told if reason), None)
            self.directory.stopped(progress.step, reason, self.composed.overrides)

    @_on_rank_0
    def _end(self) -> None:
        """What may take long, when the other ranks have left."""
        if self.complete:
            from launcher.run.reporter import show_again

            show_again(self.directory, self.composed)
            log.info("finished already: nothing is left to do in %s", self.path)
        else:
            self.reporter.show()
            if self._outcome is not None:
                log.info(self._outcome)
        self.directory.close()
