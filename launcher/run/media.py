"""What hooks log beside numbers: images in images/, and histograms, with a row for each step in media.jsonl."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from launcher.core.files import replacing
from launcher.run.record import MEDIA, Record


class Media:
    """Images and histograms of a run, in its directory.

    Args:
        path: The run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, Record(path / MEDIA)

    def open(self, recorded: int) -> None:
        """Make ready to write, with what was logged up to a step, that included; what came after it comes again."""
        self.record.open(recorded or None)
        for file in (self.path / "images").glob("**/step_*.png"):
            step = re.fullmatch(r"step_(\d+)\.png", file.name)
            if step is not None and int(step[1]) > recorded:
                file.unlink()

    def write(self, step: int, logged: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what was logged at a step.

        Args:
            step: Updates done, above that of the last call.
            logged: Name to an image, [h, w] or [h, w, 3] uint8, or a histogram as in histograms.jsonl.

        Returns:
            The row: images as {"image": path within the run directory}.
        """
        from PIL import Image  # which matplotlib brings

        row: dict[str, Any] = {"step": step}
        for name, value in logged.items():
            if isinstance(value, Tensor):
                place = f"images/{name}/step_{step:08d}.png"
                (self.path / place).parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path / place, "wb") as file:
                    Image.fromarray(value.numpy()).save(file, "png")
                row[name] = {"image": place}
            elif value:
                row[name] = value
        if len(row) > 1:
            self.record.write(row)
        return row

    def close(self) -> None:
        """End the file."""
        self.record.close()
