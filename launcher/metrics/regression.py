"""Metrics of a regression, from sums kept on the device."""

import torch
from torch import Tensor


class RegressionSums:
    """Sums of errors and targets for each of d outputs, in float64.

    Args:
        num_outputs: d.
        device: Where outputs and targets will be.
        near: [d] numbers near the targets, the same on all ranks, or None for 0: the variance of targets far from 0
            would be lost in their squares.
        unit: [d] what an error of 1 is in the unit that mae and rmse are given in, such as the deviation by which
            targets were divided; None: 1.
    """

    def __init__(
        self,
        num_outputs: int,
        device: torch.device | str,
        near: Tensor | None = None,
        unit: Tensor | None = None,
    ):
        # Rows: samples, |error|, error^2, target, target^2.
        self._sums = torch.zeros(5, num_outputs, dtype=torch.float64, device=device)
        self._near = None if near is None else near.to(device)
        self._unit = torch.ones(num_outputs, dtype=torch.float64) if unit is None else unit.double().cpu()

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count samples by outputs and targets, [n, d] each, or [n] for d = 1."""
        wanted = targets.double().reshape(len(targets), -1)
        error = outputs.double().reshape(len(outputs), -1) - wanted
        if self._near is not None:
            wanted = wanted - self._near
        rows = (torch.ones_like(error), error.abs(), error.square(), wanted, wanted.square())
        self._sums += torch.stack(rows).sum(1)

    def tensors(self) -> list[Tensor]:
        """As ClassificationSums.tensors."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics, each the plain mean over outputs, as scikit-learn's; nan where no sample was counted.

        mae, rmse (of each output its own root), both in `unit`, and r2 (of a constant target: 1 if met exactly, else
        0; nan below two samples).
        """
        samples, absolute, squared, total, total_squared = self._sums.cpu()
        spread = (total_squared - total.square() / samples).clamp_min(0.0)
        # What is left of a constant target is rounding; float32 targets that vary lie far above it.
        constant = spread <= 1e-12 * total_squared
        r2 = torch.where(constant, (squared == 0).double(), 1 - squared / spread)
        return {
            "mae": float((self._unit * (absolute / samples)).mean()),
            "rmse": float((self._unit * (squared / samples).sqrt()).mean()),
            "r2": float(r2.mean()) if samples[0] > 1 else float("nan"),
        }
