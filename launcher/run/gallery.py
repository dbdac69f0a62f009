"""Some samples of a part beside what a model says of them, as columns of a table that a tracker shows."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from launcher.batching.splits import Split, TensorSplit, as_numbers
from launcher.core.compat import tree_map_only
from launcher.core.errors import ConfigError
from launcher.core.files import replacing
from launcher.data.source import Data
from launcher.tasks.supervised import Supervised, tensor_of
from launcher.tasks.task import Task

COLOURS = (1, 3)  # channels of what can be shown as an image


def check(data: Data, task: Task) -> None:
    """Raise a ConfigError where predictions cannot stand in a table."""
    if not isinstance(task, Supervised) or task.outputs.dense:
        kind = f"a {data.task} task" if isinstance(task, Supervised) else f"by the task {type(task).__name__}"
        raise ConfigError(f"wandb.tables: predictions of data={data.name}, {kind}, have no table. Set it to 0.")


@torch.no_grad()
def columns(
    model: nn.Module,
    part: Split,
    input_shape: tuple[int, ...],
    task: Task,
    count: int,
    most: int,
    accelerator: Accelerator,
) -> dict[str, np.ndarray]:
    """The columns of a table of predictions.

    Args:
        model: The bare model; it is left in the mode it was in.
        part: Whose samples; those taken lie at equal distances, since folders of images are sorted by class.
        input_shape: Of one sample.
        task: That `check` has let pass.
        count: Rows, >= 1; fewer where the part has fewer samples.
        most: Samples that the model sees at once.
        accelerator: For its device and its autocast.

    Returns:
        Name to [n] values, or [n, height, width] or [n, height, width, 3] uint8 pixels: sample (its number in the
        part), image, and those of `Outputs.columns`.
    """
    rows = min(count, len(part))
    numbers = [len(part) * row // rows for row in range(rows)]
    if isinstance(part, TensorSplit):
        raw, targets = part.inputs[numbers].cpu(), part.targets[numbers].cpu()
    else:
        raw, targets = next(iter(DataLoader(part.dataset, batch_sampler=[numbers], collate_fn=part.collate)))
    inputs = as_numbers(raw if part.prepare is None else part.prepare(raw), part)
    was_training = model.training
    model.eval()
    outputs = []
    for first in range(0, rows, most):
        some = tree_map_only(Tensor, partial(_some, first, first + most, accelerator.device), inputs)
        with accelerator.autocast():
            outputs.append(tensor_of(model(some)).float().cpu())
    model.train(was_training)
    table: dict[str, np.ndarray] = {"sample": np.array(numbers)}
    if len(input_shape) == 3 and input_shape[0] in COLOURS:
        table["image"] = _pixels(raw if raw.shape[1:2] == input_shape[:1] else inputs)
    found = torch.cat(outputs)
    assert isinstance(task, Supervised)
    meaning = task.outputs.fitted(found, rows)
    return table | meaning.columns(meaning.scores(found), targets, False)


def _some(first: int, last: int, device: torch.device, samples: Tensor) -> Tensor:
    return samples[first:last].to(device)


def _pixels(images: Tensor) -> np.ndarray:
    """[n, 1 or 3, height, width] numbers as uint8, all scaled alike: from the least of them, black, to the greatest."""
    numbers = images.float()
    low, high = numbers.min(), numbers.max()
    scaled = ((numbers - low) * (255 / (high - low).clamp_min(1e-12))).round().byte()
    return scaled.movedim(1, -1).squeeze(-1).numpy()


def write(file: Path, table: Mapping[str, np.ndarray]) -> Path:
    """Keep a table for the tracker's process, which reads it with NumPy."""
    file.parent.mkdir(exist_ok=True)
    with replacing(file, "wb") as place:
        np.savez(place, **table)  # type: ignore[arg-type]  # numpy declares its own option among the arrays
    return file
