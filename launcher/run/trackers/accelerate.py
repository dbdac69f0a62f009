"""Accelerate's trackers (MLflow, Trackio, Comet, Aim, ClearML, DVCLive, SwanLab) as views of the record.

They show what the record holds: the config once, each row once. A run that goes on is the same run to them, and is
shown the rows after the last one that they have. MLflow and a local Trackio say themselves which that is, and DVCLive,
whose files are in the run directory, begins anew. For the others it is noted after each row: a row is lost, or comes
twice, only where this process itself is killed.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config.tree import leaves
from launcher.core.files import numbers, read_json, write_json
from launcher.run.record import measured_at_the_end, of_time

# Variables of a launch with several processes, by which Accelerate would look for the others.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Those that give a run an id: what is asked of the run for it, and the argument that goes on with it.
IDS: dict[str, tuple[Callable[[Any], str], str]] = {
    "mlflow": (lambda run: run.info.run_id, "run_id"),
    "comet_ml": (lambda run: run.get_key(), "experiment_key"),
    "aim": (lambda run: run.hash, "run_hash"),
    "clearml": (lambda run: run.id, "continue_last_task"),
}
NAMED_BY = {"mlflow": "run_name", "trackio": "name", "clearml": "task_name", "swanlab": "experiment_name"}


class AccelerateView:
    """A run of one of them, in the project `wandb.project` (or launcher), named `wandb.name` or as its directory."""

    def __init__(self, run_dir: Path, tracker: str) -> None:
        for variable in [each for each in os.environ if each in RANKS or each.startswith("ACCELERATE_")]:
            del os.environ[variable]
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # which the trackers ask whether they are the main process
        config: Any = OmegaConf.to_container(OmegaConf.load(run_dir / ".hydra/config.yaml"))
        known = bool | int | float | str
        given = {key: value if isinstance(value, known) else str(value) for key, value in leaves(config).items()}
        self._project, self._name = config["wandb"]["project"] or "launcher", tracker
        self._noted = run_dir / f".hydra/{tracker}.json"
        self._state: dict[str, Any] = {"id": uuid.uuid4().hex[:21], "step": -1, "tested": -1}  # as SwanLab wants an id
        self._state |= read_json(self._noted)
        resumed = self._noted.exists() and tracker != "dvclive"
        kind: Any = LOGGER_TYPE_TO_CLASS[tracker]
        place = ["."] if kind.requires_logging_directory else []
        options = self._options(run_dir, config["wandb"]["name"] or run_dir.resolve().name, resumed)
        if tracker == "trackio":  # which keeps what it was told when it began last, and nothing later
            options["config"] = given
        self._tracker = kind(self._project, *place, **options)
        self._tracker.start()
        if tracker in IDS:
            self._state["id"] = IDS[tracker][0](self._tracker.tracker)
        if not resumed:
            self._tracker.store_init_configuration(given)
            self._state |= {"step": -1, "tested": -1}
        self._state["step"] = self._last_step()
        write_json(self._noted, self._state)

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """See View."""
        if row["step"] <= self._state["step"]:
            return
        values = {name: value for name, value in row.items() if name != "step"} | of_time(timing)
        self._tracker.log(numbers(values), step=row["step"])
        self._state["step"] = row["step"]
        write_json(self._noted, self._state)

    def flush(self) -> None:
        """See View: they show what they are given by themselves."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """See View."""
        if summary.get("step", -1) > self._state["tested"]:
            for step, measured in measured_at_the_end(summary):
                self._tracker.log(measured, step=step)
                self._state["tested"] = summary["step"]
        self._tracker.finish()
        write_json(self._noted, self._state)

    def _options(self, run_dir: Path, name: str, resumed: bool) -> dict[str, Any]:
        """What the tracker is told: the run's name, where it has one of its own, and that it goes on with a run."""
        run_id = self._state["id"]
        options: dict[str, Any] = {NAMED_BY[self._name]: name} if self._name in NAMED_BY else {}
        if self._name == "trackio":  # which knows a run by its name
            options = {"name": f"{name}-{run_id[:6]}", "resume": "allow"}
        elif self._name == "swanlab":
            options |= {"id": run_id, "resume": "allow"}
        elif self._name == "dvclive":
            options = {"dir": str(run_dir / "dvclive")}
        elif resumed:
            options[IDS[self._name][1]] = run_id
        return options

    def _last_step(self) -> int:
        """The last step that the tracker has; -1 where it has none."""
        run, noted = self._tracker.tracker, int(self._state["step"])
        if self._name == "clearml":
            run.set_initial_iteration(0)  # else it would go on counting after its own last one
        if self._name == "mlflow":
            from mlflow import MlflowClient

            return max((one.step for one in MlflowClient().get_metric_history(run.info.run_id, "epoch")), default=-1)
        if self._name == "trackio":
            from trackio import SQLiteStorage

            last: int | None = SQLiteStorage.get_max_step_for_run(self._project, run.name)
            return noted if last is None else last
        return noted
