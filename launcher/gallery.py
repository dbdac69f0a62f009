"""Some samples of a part beside what a model says of them, as columns of a table that a tracker shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from launcher.data import Data, Part, TensorPart
from launcher.errors import ConfigError
from launcher.files import replacing
from launcher.losses import probabilities

COLOURS = (1, 3)  # channels of what can be shown as an image


def check(data: Data) -> None:
    """Check that predictions can stand in a table.

    Raises:
        ConfigError: They cannot.
    """
    if data.task == "language":
        raise ConfigError(
            f"wandb.tables: predictions of data={data.name}, a language task, have no table. Set it to 0."
        )


@torch.no_grad()
def columns(
    model: nn.Module, part: Part, data: Data, loss: Mapping[str, Any], count: int, most: int, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """The columns of a table of predictions.

    Args:
        model: The bare model; it is left in the mode it was in.
        part: Whose samples; those taken lie at equal distances, since folders of images are sorted by class.
        data: Where the part comes from.
        loss: The settings of the loss: what the outputs mean.
        count: Rows, >= 1; fewer where the part has fewer samples.
        most: Samples that the model sees at once.
        accelerator: For its device and its autocast.

    Returns:
        Name to [n] values, or [n, height, width] or [n, height, width, 3] uint8 pixels: sample (its number in the
        part), image, predicted, target, and the probability of the predicted class. Numbers are in the unit of the
        data as they were given.
    """
    rows = min(count, len(part))
    numbers = [len(part) * row // rows for row in range(rows)]
    if isinstance(part, TensorPart):
        raw, targets = part.inputs[numbers].cpu(), part.targets[numbers].cpu()
    else:
        raw, targets = next(iter(DataLoader(part.dataset, batch_sampler=[numbers])))
    inputs = raw if part.prepare is None else part.prepare(raw)
    was_training = model.training
    model.eval()
    outputs = []
    for first in range(0, rows, most):
        some = torch.utils._pytree.tree_map_only(
            Tensor, lambda tensor, at=first: tensor[at : at + most].to(accelerator.device), inputs
        )
        with accelerator.autocast():
            outputs.append(model(some).float().cpu())
    model.train(was_training)
    table: dict[str, np.ndarray] = {"sample": np.array(numbers)}
    if len(data.input_shape) == 3 and data.input_shape[0] in COLOURS:
        table["image"] = _pixels(raw if raw.shape[1:2] == data.input_shape[:1] else inputs)
    return table | _answers(torch.cat(outputs), targets, data, loss)


def _answers(outputs: Tensor, targets: Tensor, data: Data, loss: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the model says of each sample, and what is true."""
    if data.task == "classification":
        names = np.array(data.class_names or [str(number) for number in range(data.num_outputs)])
        found = outputs.argmax(1)
        shares = probabilities(loss, outputs).gather(1, found[:, None])[:, 0]
        return {"predicted": names[found], "target": names[targets], "probability": shares.numpy()}
    pairs = {"predicted": outputs.double(), "target": targets.double()}
    answers = {}
    for name, values in pairs.items():
        values = values.reshape(len(values), -1)
        if data.target_mean is not None and data.target_std is not None:
            values = values * data.target_std + data.target_mean
        for i, column in enumerate(values.unbind(1)):
            answers[f"{name}_{i}" if data.num_outputs > 1 else name] = column.numpy()
    return answers


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
