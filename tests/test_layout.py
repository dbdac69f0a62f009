"""Channels last: the values stay, and the gradients keep to the layout."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launcher import layout


class Layouts(TorchDispatchMode):
    """Notes what backward kernels are called, and which of them with images in torch's usual layout."""

    def __init__(self):
        super().__init__()
        self.names, self.mixed = set(), set()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.overloadpacket.__name__
        if "backward" in name:
            self.names.add(name)
            images = [one for one in arguments if isinstance(one, torch.Tensor) and one.dim() == 4]
            if not all(one.is_contiguous(memory_format=torch.channels_last) for one in images):
                self.mixed.add(name)
        return operation(*arguments, **(options or {}))


class Flattened(torch.nn.Module):
    """Flattens by a method, as many models do."""

    def forward(self, inputs):
        return inputs.flatten(1)


@pytest.mark.parametrize("end", ["module", "method"])
def test_gradients_come_back_with_their_channels_last(end):
    """No kernel of the backward meets tensors of two layouts; the gradients are those of the usual layout."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(inplace=True)),
        *([torch.nn.Flatten()] if end == "module" else [torch.nn.AdaptiveAvgPool2d(5), Flattened()]),
        torch.nn.Linear(200, 5),
    )
    inputs = torch.randn(4, 3, 16, 16)
    model = copy.deepcopy(plain)
    plain(inputs).square().sum().backward()
    layout.lay_out(model, keep_gradients=True)
    with Layouts() as seen:
        model(layout.channels_last(inputs)).square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert {"threshold_backward", "max_pool2d_with_indices_backward"} <= seen.names
    assert not seen.mixed, "these go over their tensors an element at a time"
    model = pickle.loads(pickle.dumps(model)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(layout.channels_last(inputs)), plain(inputs))


def test_what_is_no_image_stays_as_it_is():
    """Poolings of a single image, of sequences and with indices; vectors; words."""
    model = torch.nn.Sequential(torch.nn.MaxPool2d(2, return_indices=True))
    layout.lay_out(model, keep_gradients=True)
    values, indices = model(torch.randn(1, 3, 4, 4, requires_grad=True))
    values.sum().backward()
    assert values.shape == indices.shape == (1, 3, 2, 2)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten(0))
    layout.lay_out(model, keep_gradients=True)
    one = torch.randn(3, 4, 4, requires_grad=True)
    model(one).sum().backward()
    torch.testing.assert_close(one.grad, torch.full((3, 4, 4), 0.25))
    for value in (torch.ones(3, 4), "word", {"a": 1}):
        assert layout.channels_last(value) is value
