"""Focal loss against its formula."""

import pytest
import torch
from loss_cases import WEIGHTS

from launcher.losses.focal import FocalLoss
from launcher.losses.per_sample import PerSample


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    torch.manual_seed(0)
    outputs, targets = 2 * torch.randn(50, 4, dtype=torch.float64), torch.randint(4, (50,))
    alpha = torch.tensor(WEIGHTS, dtype=torch.float64)
    p = outputs.softmax(1)[torch.arange(50), targets]
    formula = -alpha[targets] * (1 - p) ** gamma * p.log()
    values = FocalLoss(gamma, WEIGHTS)(outputs, targets)
    torch.testing.assert_close(values, formula.float(), rtol=1e-5, atol=1e-6)
    plain = FocalLoss(gamma)(outputs, targets)
    torch.testing.assert_close(plain, (-((1 - p) ** gamma) * p.log()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [None, WEIGHTS])
@pytest.mark.parametrize("task", ["segmentation", "language"])
def test_pixels_and_tokens_of_no_class_count_nowhere(alpha, task):
    """The mean is over the others alone, for focal and for a loss of a person's own, which knows nothing of them."""
    torch.manual_seed(0)
    outputs, targets = torch.randn(5, 4, 3, 2), torch.randint(4, (5, 3, 2))
    targets[0, 1:], targets[3] = -100, -100
    flat, true = outputs.movedim(1, -1)[targets >= 0], targets[targets >= 0]
    p, of_class = flat.softmax(1)[torch.arange(len(true)), true], torch.tensor(alpha or [1.0] * 4)[true]
    expected = ((1 - p) ** 2 * -p.log() * of_class).sum() / of_class.sum()
    if task == "language":  # [n, tokens, classes]
        outputs, targets = outputs.movedim(1, -1).flatten(1, 2), targets.flatten(1)
    values, weights = PerSample(FocalLoss(2, alpha), task)(outputs, targets)
    torch.testing.assert_close(values.sum() / weights.sum(), expected)
    assert values[3] == weights[3] == 0
    if alpha is None:

        class Own(torch.nn.Module):
            def forward(self, outputs, targets):
                return (outputs.argmax(1) != targets).float() / (targets + 100)

        values, weights = PerSample(Own(), task)(outputs, targets)
        wrong = (flat.argmax(1) != true).float() / (true + 100)
        torch.testing.assert_close(values.sum() / weights.sum(), wrong.mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_is_finite_at_extreme_logits(dtype, gamma):
    outputs = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, 0.0]]).to(dtype).requires_grad_()
    values = FocalLoss(gamma)(outputs, torch.zeros(4, dtype=torch.int64))
    half = 0.5**gamma * torch.log(torch.tensor(2.0))
    wrong = 2 * outputs.detach()[0, 0].float()  # 1e4 as the dtype holds it
    torch.testing.assert_close(values, torch.stack([torch.tensor(0.0), wrong, half, half]))
    values.sum().backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all()
    torch.testing.assert_close(outputs.grad[0], torch.zeros(2, dtype=dtype))
    torch.testing.assert_close(outputs.grad[1], torch.tensor([-1.0, 1.0], dtype=dtype))
