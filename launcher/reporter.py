"""What a run shows and leaves behind: the record, the terminal, the trackers, the pages. Rank 0 alone has one."""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import gallery, histograms, provenance
from launcher.checkpoint import Progress, checkpoints, step_of
from launcher.engine import Evaluation
from launcher.run_directory import RunDirectory, write_json
from launcher.tracking import HISTOGRAMS, Record, WandbTracker, of_time
from launcher.views import Views

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

log = logging.getLogger("launcher")


class Reporter:
    """Takes every figure of a run once, and shows it where it belongs.

    Args:
        directory: Of the run.
        step: Updates done before; histograms up to there stay.
        recorded: The last step whose row stays in the record; those after it come again.
        total_steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch.
        settings: The config as plain values, for the trackers.
        trackers: Where the figures are shown: wandb, tensorboard, csv.
        wandb: The settings of conf's wandb node.
    """

    def __init__(
        self,
        directory: RunDirectory,
        step: int,
        recorded: int,
        total_steps: int,
        steps_per_epoch: int,
        settings: Mapping[str, Any],
        trackers: list[str],
        wandb: Mapping[str, Any],
    ) -> None:
        from launcher.terminal import Progress as Bar

        self.directory, self.path, self.steps_per_epoch = directory, directory.path, steps_per_epoch
        self.record = Record(self.path / "metrics.jsonl")
        self.record.open(recorded or None)
        self.timings = Record(self.path / "timings.jsonl")
        self.timings.open(recorded or None)
        self.tracker = None
        if "wandb" in trackers and wandb["mode"] != "disabled":
            own = {name: wandb[name] for name in ("mode", "project", "entity", "name", "group", "tags")}
            code = provenance.own_files() if wandb["code"] else None
            run_id = directory.run_id(wandb["id"] or os.environ.get("WANDB_RUN_ID") or None)
            self.tracker = WandbTracker(self.path, dict(settings), run_id=run_id, code=code, **own)
        self._artifacts = wandb["artifacts"]
        self._watched: str | None = wandb["watch"] or None if self.tracker is not None else None
        self.histograms = Record(self.path / HISTOGRAMS)
        if self._watched or self.histograms.path.exists():
            self.histograms.open(step or None)
        for stale in ("stopped.json", "summary.json", "evaluation.json"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / stale).unlink()
        self._viewed = [name for name in trackers if name != "wandb"]
        self.views = Views(self.path, self._viewed) if self._viewed else None
        self.bar = Bar(total_steps, step, steps_per_epoch)

    def row(self, step: int, figures: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Take the figures of a step, and the rates since the last row."""
        row = {"step": step, "epoch": step / self.steps_per_epoch, **figures}
        self.record.write(row)
        self.timings.write(timing)
        shown = row | of_time(timing)
        self.bar.update(row | dict(timing))
        if self.tracker is not None:
            self.tracker.log(shown)
        if self.views is not None:
            self.views.look()

    def watch(self, step: int, model: "nn.Module") -> None:
        """Keep histograms of the gradients and weights after a step, and show them in W&B, where that is on."""
        if self.tracker is not None and self._watched is not None:
            row = {"step": step} | histograms.of_model(model, self._watched)
            self.histograms.write(row)
            self.tracker.log(row)

    def go_back(self, recorded: int) -> None:
        """Forget the rows after a step, which will come again; W&B keeps what it has seen of them."""
        if self.views is not None:
            self.views.close()
        for record in (self.record, self.timings):
            record.open(recorded or None)
        if self._watched:
            self.histograms.open(recorded or None)
        if self.views is not None:
            self.views = Views(self.path, self._viewed)

    def close(
        self, summary: dict[str, Any], progress: Progress, evaluation: Evaluation | None, names: list[str] | None
    ) -> dict[str, Any]:
        """Write the summary and end the record: from here on the run is done, whatever becomes of its pictures.

        Args:
            summary: What summary.json holds beside the figures.
            progress: For the best figures.
            evaluation: Of the test part; None where the run was stopped before its end.
            names: Of the classes.

        Returns:
            All of summary.json.
        """
        final: dict[str, Any] = {}
        for row in self.record.rows():
            final |= {name: value for name, value in row.items() if name not in ("step", "epoch")}
        if evaluation is not None:
            final |= {f"test/{name}": value for name, value in evaluation.figures.items()}
            write_json(self.path / "evaluation.json", evaluation.as_dict("test", names))
        summary = summary | {"final": final, "best": progress.best}
        write_json(self.path / "summary.json", summary)
        self.record.sync()
        self.record.close()
        self.timings.close()
        self.histograms.close()
        self.bar.close()
        self.bar.final_table(summary)
        return summary

    def show(
        self, summary: Mapping[str, Any], best_step: int | None, predictions: "Mapping[str, np.ndarray] | None"
    ) -> None:
        """Draw the pictures and the page, and end the trackers, which may take their time.

        Args:
            summary: What `close` returned.
            best_step: Of the best checkpoint.
            predictions: Columns of a table for W&B.
        """
        from launcher import report

        report.draw_curves(self.path)
        report.write_report(self.path)
        if self.views is not None:
            self.views.close()
        if self.tracker is not None:
            table = None if predictions is None else gallery.write(self.path / "wandb" / "predictions.npz", predictions)
            chosen = self._chosen(best_step)
            self.tracker.finish(dict(summary), {"curves": self.path / "curves.png"}, chosen, table)

    def _chosen(self, best: int | None) -> dict[Path, list[str]]:
        """The checkpoints that W&B is to have, oldest first, and what it is to call them; the last is its `latest`."""
        aliases = {path: [path.name] for path in checkpoints(self.path / "checkpoints")}
        for path, names in aliases.items():
            if step_of(path) == best:
                names.append("best")
        wanted = {False: (), "best": ("best",), "all": ("step",)}[self._artifacts]
        return {path: names for path, names in aliases.items() if any(name.startswith(wanted) for name in names)}
