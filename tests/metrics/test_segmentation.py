import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from launcher.metrics.segmentation import SegmentationSums


def test_figures_are_those_of_scikit_learn_over_all_pixels_that_count():
    torch.manual_seed(0)
    outputs, targets = torch.randn(9, 4, 5, 6), torch.randint(4, (9, 5, 6))
    outputs[:, 3] = -9.0  # never predicted
    targets[0], targets[1, 2] = -100, -100
    sums = [SegmentationSums(4, "cpu", ["sky", "sea", "sand", "ship"]) for _ in range(2)]
    for one, cut in zip(sums, (slice(0, 2), slice(2, 9)), strict=True):
        one.update(outputs[cut], targets[cut])
    for own, other in zip(sums[0].tensors(), sums[1].tensors(), strict=True):
        own += other
    found = sums[0].figures()
    true, predicted = targets[targets >= 0], outputs.argmax(1)[targets >= 0]
    iou = jaccard_score(true, predicted, average=None, zero_division=0)
    dice = f1_score(true, predicted, average=None, zero_division=0)
    names = ["sky", "sea", "sand", "ship"]
    assert [found[f"iou_{name}"] for name in names] == pytest.approx(iou)
    assert [found[f"dice_{name}"] for name in names] == pytest.approx(dice)
    assert found["mean_iou"] == pytest.approx(iou.mean()) and found["mean_dice"] == pytest.approx(dice.mean())
    assert found["accuracy"] == pytest.approx((true == predicted).double().mean().item()) and found["iou_ship"] == 0


def test_a_class_that_occurs_nowhere_is_in_no_mean():
    sums = SegmentationSums(3, "cpu")
    sums.update(torch.eye(3)[torch.tensor([[[0, 1]]])].movedim(-1, 1), torch.tensor([[[0, 0]]]))
    found = sums.figures()
    assert found["iou_0"] == 0.5 and found["iou_1"] == 0 and found["iou_2"] != found["iou_2"]
    assert found["mean_iou"] == 0.25 and found["accuracy"] == 0.5
