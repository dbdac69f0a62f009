"""TensorBoard as a view of the record: an event file in tb/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.files import number
from launcher.run.record import measured_at_the_end, of_time


class TensorBoard:
    """An event file in tb/, by the writer that torch.utils.tensorboard uses, without importing torch for it."""

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        for old in (run_dir / "tb").glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventFileWriter(str(run_dir / "tb"))
        # A TensorBoard that has the file before this one in memory forgets it here.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=0, session_log=start))
        self._time = 0.0

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """See View."""
        self._time = timing.get("time", self._time)
        self._add(row["step"], {name: value for name, value in row.items() if name != "step"} | of_time(timing))

    def flush(self) -> None:
        """See View."""
        self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """See View."""
        for step, measured in measured_at_the_end(summary):
            self._add(step, measured)
        self._writer.close()

    def _add(self, step: int, figures: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=name, simple_value=number(value)) for name, value in figures.items()]
        if values:
            self._writer.add_event(self._event(step=step, wall_time=self._time, summary=self._summary(value=values)))
