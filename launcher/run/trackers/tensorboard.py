"""TensorBoard as a view of the record and of what hooks log beside it: an event file in tb/."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.files import number
from launcher.run.record import MEDIA, measured_at_the_end, of_time


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
        self._run_dir, self._media_read = run_dir, 0  # bytes of its media.jsonl

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """See View."""
        self._time = timing.get("time", self._time)
        self._add(row["step"], {name: value for name, value in row.items() if name != "step"} | of_time(timing))

    def flush(self) -> None:
        """See View."""
        self._add_media()
        self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """See View."""
        self._add_media()
        for step, measured in measured_at_the_end(summary):
            self._add(step, measured)
        self._writer.close()

    def _add(self, step: int, figures: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=name, simple_value=number(value)) for name, value in figures.items()]
        self._write(step, values)

    def _write(self, step: int, values: list[Any]) -> None:
        if values:
            self._writer.add_event(self._event(step=step, wall_time=self._time, summary=self._summary(value=values)))

    def _add_media(self) -> None:
        """Take the images and histograms that have come since the last call; a torn last line is left for the next."""
        if not (self._run_dir / MEDIA).exists():
            return
        with (self._run_dir / MEDIA).open("rb") as file:
            file.seek(self._media_read)
            for line in file:
                if line.endswith(b"\n"):
                    self._media_read += len(line)
                    row = json.loads(line)
                    values = [self._shown(name, value) for name, value in row.items() if name != "step"]
                    self._write(row["step"], values)

    def _shown(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            picture = (self._run_dir / value["image"]).read_bytes()
            width, height = (
                int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)
            )  # a PNG begins with its size
            image = self._summary.Image(encoded_image_string=picture, width=width, height=height)
            return self._summary.Value(tag=name, image=image)
        from tensorboard.compat.proto.histogram_pb2 import HistogramProto

        low, high, *counts = value
        ends = [low + (high - low) * (i + 1) / len(counts) for i in range(len(counts))]
        middle = [end - (high - low) / len(counts) / 2 for end in ends]
        histo = HistogramProto(
            min=low, max=high, num=sum(counts), bucket_limit=ends, bucket=counts,
            sum=sum(count * at for count, at in zip(counts, middle, strict=True)),
            sum_squares=sum(count * at * at for count, at in zip(counts, middle, strict=True)),
        )  # fmt: skip
        return self._summary.Value(tag=name, histo=histo)
