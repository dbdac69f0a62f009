"""What a run shows and leaves behind: the record, the terminal, the trackers, the pages. Rank 0 alone has one."""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.composed import Composed, node_of
from launcher.config.tree import at
from launcher.core.errors import ConfigError
from launcher.core.files import numbers, read_json, write_json, write_text
from launcher.distributed.threads import takes_all_cores
from launcher.run import gallery, pictures, provenance
from launcher.run.config_file import read_config
from launcher.run.earlier_run import Found
from launcher.run.lock import lock
from launcher.run.media import Media
from launcher.run.record import HISTOGRAMS, MEDIA, TABLE, TEST_SAMPLES, Record, of_time
from launcher.run.run_directory import UNSHOWN, RunDirectory
from launcher.run.terminal import Progress as Bar
from launcher.run.terminal import final_table
from launcher.run.trackers import views
from launcher.run.trackers.views import MADE_ANEW, Views
from launcher.run.trackers.wandb import WandbTracker
from launcher.training import histograms
from launcher.training.checkpoint import checkpoints, step_of
from launcher.training.evaluation import Evaluation
from launcher.training.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

log = logging.getLogger("launcher")

LATE = 20.0  # seconds of training before W&B's process, which takes 2 of a core to start, takes a core that trains
PATIENTLY = 20.0  # times as long as a run may wait: by processes that take what trials leave of the processor


class Reporter:
    """Takes every metric of a run once, and shows it where it belongs.

    Args:
        directory: Of the run.
        composed: Its config.
        progress: What is done: rows after its last recorded step come again, histograms after its last step.
        total_steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch.
    """

    def __init__(
        self, directory: RunDirectory, composed: Composed, progress: Progress, total_steps: int, steps_per_epoch: int
    ) -> None:
        settings = composed.used()
        self.path, self.steps_per_epoch = directory.path, steps_per_epoch
        self.record = Record(self.path / "metrics.jsonl")
        self.timings = Record(self.path / "timings.jsonl")
        self.histograms = Record(self.path / HISTOGRAMS)
        for record in (self.record, self.timings):
            record.open(progress.recorded or None)
        self.tracker = tracker_of(directory, composed.plain(), settings)
        self._artifacts = settings.wandb.artifacts
        self._watched: str | None = settings.wandb.watch or None if self.tracker is not None else None
        if self._watched or self.histograms.path.exists():
            self.histograms.open(progress.step or None)
        self.media = Media(self.path)
        self._has_media = bool(settings.hooks) or (self.path / MEDIA).exists()
        if self._has_media:
            self.media.open(progress.recorded)
        for stale in ("stopped.json", "summary.json", "evaluation.json", TABLE, TEST_SAMPLES, UNSHOWN):
            (self.path / stale).unlink(missing_ok=True)
        self._viewed = [name for name in settings.trackers if name != "wandb"]
        self.views = views.start(self.path, self._viewed)
        self.bar = Bar(total_steps, progress.step, steps_per_epoch)

    def row(self, step: int, figures: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Take the figures of a step, and the rates since the last row; no rates where hooks alone have figures."""
        row = {"step": step, "epoch": step / self.steps_per_epoch, **figures}
        self.record.write(row)
        if timing:
            self.timings.write(timing)
            self.bar.update(row | dict(timing))
        if self.tracker is not None:
            self.tracker.log(row | of_time(timing))

    def show_media(self, step: int, logged: Mapping[str, Any]) -> None:
        """Keep images and histograms that hooks have logged at a step, and show them."""
        row = self.media.write(step, logged)
        if self.tracker is not None:
            self.tracker.log(row)

    def watch(self, step: int, model: "nn.Module") -> None:
        """Keep histograms of the gradients and weights after a step, and show them in W&B, where that is on."""
        if self.tracker is not None and self._watched is not None:
            row = {"step": step} | histograms.of_model(model, self._watched)
            self.histograms.write(row)
            self.tracker.log(row)

    def go_back(self, recorded: int) -> None:
        """Forget the rows after a step, which will come again; W&B keeps what it has seen of them."""
        for view in self.views:
            view.close()
        for record in (self.record, self.timings):
            record.open(recorded or None)
        if self._watched:
            self.histograms.open(recorded or None)
        if self._has_media:
            self.media.open(recorded)
        self.views = views.start(self.path, self._viewed)

    def close(
        self,
        summary: dict[str, Any],
        progress: Progress,
        tested: Mapping[int, Evaluation],
        names: list[str] | None,
        predictions: "Mapping[str, np.ndarray] | None",
    ) -> None:
        """Write the summary and end the record: from here on the run is done, whatever becomes of its pictures.

        Arguments as for `RankZero.conclude`; to `summary` the metrics are added.
        """
        final: dict[str, Any] = {}
        for row in self.record.rows():
            final |= {name: value for name, value in row.items() if name not in ("step", "epoch")}
        figures: dict[int | None, dict[str, float]] = {
            step: {f"test/{name}": value for name, value in found.metrics.items()} for step, found in tested.items()
        }
        best = progress.best | figures.get(progress.best_step, {})
        summary = summary | {"final": final | figures.get(progress.step, {}), "best": best}
        details = [
            found.as_dict("test", names) | {"step": step, "which": "best" if step == progress.best_step else "last"}
            for step, found in tested.items()
        ]
        if details:
            others = {"last": details[1]} if len(details) > 1 else {}
            write_json(self.path / "evaluation.json", details[0] | others, durable=True)
        for found in tested.values():
            if found.by_sample is not None:  # the first is the best, which the comparison of a sweep goes by
                arrays = {name: tensor.numpy() for name, tensor in found.by_sample.items()}
                gallery.write(self.path / TEST_SAMPLES, arrays)
                break
        if predictions is not None:
            gallery.write(self.path / TABLE, predictions)
        write_text(self.path / UNSHOWN, "")
        write_json(self.path / "summary.json", summary, durable=True)
        self.record.sync()
        for record in (self.record, self.timings, self.histograms):
            record.close()
        self.media.close()
        self.bar.close()
        final_table(summary)

    def show(self) -> None:
        """Draw the pictures and the page, and end the trackers, which may take their time."""
        show(self.path, self.tracker, self.views, self._artifacts)


def show_again(directory: RunDirectory, composed: Composed) -> None:
    """What the end of a finished run had no time for, and pictures that are missing or broken since."""
    path, settings = directory.path, composed.used()
    cut_short = (path / UNSHOWN).exists()
    missing = {name for name, file in MADE_ANEW.items() if not (path / file).exists()}
    viewed = [name for name in settings.trackers if name != "wandb" and (cut_short or name in missing)]
    if cut_short or viewed or pictures.undrawn(path):
        tracker = tracker_of(directory, composed.plain(), settings) if cut_short else None
        show(path, tracker, views.start(path, viewed), settings.wandb.artifacts)


def show_left(path: Path) -> None:
    """What a run has left to the executor of its sweep: its pictures, and its W&B run where that had not begun."""
    with contextlib.suppress(ConfigError):  # a run is in it again, which ends as this one has
        directory = RunDirectory(path, lock(path), Found())
        if pictures.undrawn(path):
            pictures.draw(path)
        if (path / UNSHOWN).exists():
            config = read_config(path, "hydra.run.dir")
            settings = node_of(at(config, path))
            _end(path, tracker_of(directory, config, settings), [], settings.wandb.artifacts, PATIENTLY)
        directory.close()


def tracker_of(directory: RunDirectory, config: Mapping[str, Any], settings: Any) -> WandbTracker | None:
    """W&B where it is wanted.

    Args:
        directory: Of the run.
        config: Its settings, as W&B is to show them.
        settings: The same, as they have it in this directory.
    """
    wandb = settings.wandb
    if "wandb" not in settings.trackers or wandb.mode == "disabled":
        return None
    code = provenance.own_files() if wandb.code else None
    run_id = directory.run_id(wandb.id or os.environ.get("WANDB_RUN_ID") or None)
    wait = LATE if takes_all_cores() else 0.0
    return WandbTracker(directory.path, config, wandb, run_id, code, wait)


def show(path: Path, tracker: WandbTracker | None, shown: Sequence[Views], artifacts: str | bool) -> None:
    """Draw the pictures of a run from its files, and end its trackers: W&B and those of the record.

    A trial of a sweep leaves the pictures to its executor, and W&B where that waits still.
    """
    if (tracker is None or tracker.waits) and pictures.left_to_others(path):
        if all([view.close() for view in shown]) and tracker is None:
            (path / UNSHOWN).unlink(missing_ok=True)
        return
    if tracker is not None:
        tracker.begin()
    pictures.draw(path)
    _end(path, tracker, shown, artifacts)


def _end(
    path: Path, tracker: WandbTracker | None, shown: Sequence[Views], artifacts: str | bool, slack: float = 1.0
) -> None:
    """End trackers, and note that all is shown where they came to their ends; `slack` as for `WandbTracker.finish`."""
    ended = all([view.close() for view in shown])
    if tracker is not None:
        summary = read_json(path / "summary.json")
        summary |= {name: numbers(summary.get(name)) for name in ("final", "best")}
        ended = tracker.finish(summary, _chosen(path, artifacts, summary.get("best_step")), slack) and ended
    if ended:
        (path / UNSHOWN).unlink(missing_ok=True)


def _chosen(path: Path, artifacts: str | bool, best: int | None) -> dict[Path, list[str]]:
    """The checkpoints that W&B is to have, oldest first, and what it is to call them; the last is its `latest`."""
    aliases = {place: [place.name] for place in checkpoints(path / "checkpoints")}
    for place, names in aliases.items():
        if step_of(place) == best:
            names.append("best")
    wanted = {False: (), "best": ("best",), "all": ("step",)}[artifacts]
    return {place: names for place, names in aliases.items() if any(name.startswith(wanted) for name in names)}
