"""Metrics of numbers against scikit-learn and torchmetrics."""

import pytest
import sklearn.metrics as sk
import torch
import torchmetrics

from launcher.metrics.regression import RegressionSums

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 2000.0])
def test_regression_is_that_of_sklearn_and_torchmetrics(d, offset):
    torch.manual_seed(0)
    targets = torch.randn(500, d) * torch.arange(1.0, d + 1) + offset
    outputs = targets + 0.3 * torch.randn(500, d)
    ranks = [RegressionSums(d, "cpu"), RegressionSums(d, "cpu")]
    for i, (x, y) in enumerate(zip(outputs.split(61), targets.split(61), strict=True)):
        ranks[i % 2].update(x, y)
    for mine, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        mine += other
    figures = ranks[0].figures()
    wanted, given = targets.double().numpy(), outputs.double().numpy()
    assert figures["mae"] == pytest.approx(sk.mean_absolute_error(wanted, given), rel=1e-12)
    assert figures["rmse"] == pytest.approx(sk.root_mean_squared_error(wanted, given), rel=1e-12)
    assert figures["r2"] == pytest.approx(sk.r2_score(wanted, given), rel=1e-8)
    r2 = torchmetrics.R2Score()(outputs.double(), targets.double())
    assert figures["r2"] == pytest.approx(float(r2), rel=1e-8)


def test_errors_of_standardised_targets_are_in_their_own_units():
    torch.manual_seed(0)
    prices = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([3000.0, 0.02]) + torch.tensor([9000.0, -1.0])
    mean, std = prices.mean(0), prices.std(0)
    guesses = prices + std * torch.randn(200, 2)
    sums = RegressionSums(2, "cpu", unit=std)
    sums.update((guesses - mean) / std, (prices - mean) / std)
    figures = sums.figures()
    assert figures["mae"] == pytest.approx(sk.mean_absolute_error(prices, guesses), rel=1e-12)
    assert figures["rmse"] == pytest.approx(sk.root_mean_squared_error(prices, guesses), rel=1e-12)
    assert figures["r2"] == pytest.approx(sk.r2_score(prices, guesses), rel=1e-12)


def test_regression_of_constant_targets_and_of_nothing():
    def r2(outputs, targets):
        sums = RegressionSums(1, "cpu")
        sums.update(outputs, targets)
        return sums.figures()["r2"]

    for value in (0.1, 1 / 3, 7.7, -1e5 / 3):  # the sums of which round up or down
        constant = torch.full((1009,), value, dtype=torch.float64)
        assert r2(constant, constant) == 1.0 and r2(constant + 1, constant) == 0.0
    constant = torch.full((9,), 0.1)
    assert r2(constant, constant) == sk.r2_score(constant, constant) == 1.0
    assert r2(constant + 1, constant) == sk.r2_score(constant, constant + 1) == 0.0
    assert r2(constant[:1], constant[:1]) != r2(constant[:1], constant[:1])  # nan
    assert all(value != value for value in RegressionSums(2, "cpu").figures().values())
