"""Tables of numbers: split, then standardised by what the training part shows."""

import numpy as np
import torch
from torch import Tensor

from launcher.data import Data, TensorPart, split_three
from launcher.errors import ConfigError


def statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, [d] each; 1 for a constant column, which becomes 0."""
    return rows.mean(axis=0), np.where(np.ptp(rows, axis=0) > 0, rows.std(axis=0), 1.0)


def from_table(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    class_names: list[str] | None,
    test: float,
    validation: float,
    split_seed: int,
) -> Data:
    """A data source from a table in memory.

    Inputs, and the targets of a regression, are standardised by mean and standard deviation of the training
    part, so that nothing of the other two parts reaches the model. Errors of a regression are therefore in
    standard deviations of the target; `Data.target_std` gives what one of them is in the target's own unit.

    Args:
        name: Name of the source.
        features: [n, d] float64.
        targets: [n] integer classes 0 .. k - 1 for a classification, [n, d] float64 for a regression.
        class_names: One name per class, or None for a regression.
        test: Share of all rows for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: A share or the seed is outside its range, there are too few rows, or the target of a
            regression is constant over the training part.
    """
    labels = torch.from_numpy(targets).long() if class_names is not None else None
    indices = split_three(len(features), test, validation, split_seed, labels)
    train = indices[0].numpy()
    mean, std = statistics(features[train])
    inputs = torch.from_numpy((features - mean) / std).float()
    target_mean: Tensor | None = None
    target_std: Tensor | None = None
    input_mean, input_std = torch.from_numpy(mean), torch.from_numpy(std)
    if labels is not None:
        values, task, outputs = labels, "classification", len(class_names or ())
    else:
        if (np.ptp(targets[train], axis=0) == 0).any():
            raise ConfigError(
                f"data={name}: the target is {targets[train][0].tolist()} in all {len(train)} training rows; "
                "there is nothing to predict."
            )
        mean, std = statistics(targets[train])
        values = torch.from_numpy((targets - mean) / std).float()
        task, outputs = "regression", targets.shape[1]
        target_mean, target_std = torch.from_numpy(mean), torch.from_numpy(std)
    parts = [TensorPart(inputs[part], values[part]) for part in indices]
    return Data(
        name=name,
        task=task,
        input_shape=(features.shape[1],),
        num_outputs=outputs,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        class_names=class_names,
        target_mean=target_mean,
        target_std=target_std,
        input_mean=input_mean,
        input_std=input_std,
    )
