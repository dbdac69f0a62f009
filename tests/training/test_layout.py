"""Channels last: the values stay, and the gradients keep to the layout."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.training import layout


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


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_fused_optimizer_goes_on_with_the_state_that_a_checkpoint_kept(kind):
    """Contiguous state, loaded beside filters with their channels last: the update of a loop over plain elements."""

    def made(fused):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 5, 2))
        options = {"SGD": {"momentum": 0.9}, "Adagrad": {"initial_accumulator_value": 0.1}}.get(kind, {})
        optimizer = getattr(torch.optim, kind)([weight], lr=0.1, fused=fused, foreach=False, **options)
        if fused:
            weight.data = layout.channels_last(weight.data)
            layout.load_optimizer_state(optimizer, optimizer.state_dict())
        return weight, optimizer

    def stepped(weight, optimizer, seed):
        gradient = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(seed))
        weight.grad = layout.like(weight, gradient)
        optimizer.step()

    (plain, by_element), (first, before) = made(False), made(True)
    for seed in (1, 2):
        stepped(plain, by_element, seed)
        stepped(first, before, seed)
    resumed, after = made(True)
    resumed.data.copy_(first.data)
    kept = torch.utils._pytree.tree_map_only(torch.Tensor, lambda one: one.contiguous(), before.state_dict())
    layout.load_optimizer_state(after, copy.deepcopy(kept))
    for seed in (3, 4):
        for weight, optimizer in ((plain, by_element), (first, before), (resumed, after)):
            stepped(weight, optimizer, seed)
    torch.testing.assert_close(resumed.data, plain.data)
    assert torch.equal(resumed.data, first.data)
    for values in after.state.values():
        assert {v.stride() for v in values.values() if v.dim()} == {resumed.stride()}


def test_a_tensor_takes_the_strides_of_the_one_that_it_stands_for():
    pattern = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    value = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    laid_out = layout.like(pattern, value)
    assert laid_out.stride() == pattern.stride() and torch.equal(laid_out, value) and laid_out.dtype == torch.float64
    assert layout.like(pattern, laid_out) is laid_out
    assert layout.like(pattern, value[0]).stride() == value[0].stride(), "another shape stands for something else"
    transposed = torch.nn.Parameter(torch.randn(3, 4).t())
    assert layout.like(transposed, torch.randn(4, 3)).stride() == (1, 4)
