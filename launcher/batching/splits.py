"""The samples of a split, in memory or one by one, and the types in which a model gets them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from launcher.core.compat import tree_leaves, tree_map_only
from launcher.core.errors import ConfigError

LOOKED = 1 << 24  # numbers that are looked through at once
INDICES = {torch.int32, torch.int64}


@dataclass
class TensorSplit:
    """A split that lies in memory as two tensors, so that a batch is one indexing of each.

    Args:
        inputs: [n, ...] of any dtype; images stay uint8, a quarter of the memory of float32. The model gets float32
            (see `suit`), but for int32 and int64, which may be indices.
        targets: [n] classes of any integer type, [n, d] numbers, [n, k] labels 0 and 1, or [n, t] tokens.
        prepare: Raw inputs [b, ...] to what the model gets [b, ...] float32; deterministic, row by row.
        augment: (raw inputs [b, ...], uniforms [b, draws] float32 in [0, 1)) to raw inputs [b, ...]; each row
            depends on its own row alone.
        draws: Uniform numbers per sample that augment takes.
        mapped: Both lie in a file that is read where it is asked for, and never as a whole.
        dtype: Of the numbers that the model takes; see `suit`.
        indices: Whether int32 and int64 are given as they are.
    """

    inputs: Tensor
    targets: Tensor
    prepare: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, Tensor], Tensor] | None = None
    draws: int = 0
    mapped: bool = False
    dtype: torch.dtype = torch.float32
    indices: bool = True

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise ConfigError(
                    f"data: the {name} of a TensorSplit are a {kind}, not a tensor; give torch.as_tensor(...)."
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, index: Tensor) -> "TensorSplit":
        """The samples `index` alone, [n] int64."""
        return replace(self, inputs=self.inputs[index], targets=self.targets[index], mapped=False)


@dataclass
class DatasetSplit:
    """A split that is read sample by sample, from a map-style torch Dataset.

    Args:
        dataset: Gives (input, target) for an index in 0 .. len - 1. What it draws at random comes from the
            global generator of torch, which is seeded for each sample. Modules that it names in `preload` are imported
            once for all workers.
        targets: [n] int64, every label in order, where cheap to know.
        prepare: Inputs of a batch, as the DataLoader put them together, to what the model gets; deterministic, row
            by row, on the device: images cross over as uint8, a quarter of the bytes.
        batched: The dataset draws nothing at random, and gives a list of indices at once by `__getitems__`.
        plain: The same samples without anything random, for what measures them; None where `dataset` is so itself.
        dtype: Of the numbers that the model takes; see `suit`.
        indices: Whether int32 and int64 are given as they are.
        collate: Puts a list of samples together, such as `launcher.batching.padding.Pad`; None: as torch does. It must
            be one that a process can be sent: a function at the top of a module, or an object of such a class.
        lengths: [n] int64, of each sample, where it is cheap to know: what sampling=group_by_length goes by.
        checksum: Of what is known of the samples without reading all of them.
        shards: Samples of each file that they lie in, one after the other; None: they lie elsewhere.
        open_shards: How many of these files may be open at once.
    """

    dataset: Any
    targets: Tensor | None = None
    prepare: Callable[[Any], Any] | None = None
    batched: bool = False
    plain: Any = None
    dtype: torch.dtype = torch.float32
    indices: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    lengths: Tensor | None = None
    checksum: int = 0
    shards: tuple[int, ...] | None = None
    open_shards: int = 1
    loader: Any = field(default=None, init=False, repr=False, compare=False)  # see launcher/batching/loading.py
    workers: int | None = field(default=None, init=False, repr=False, compare=False)  # what num_workers=auto has chosen

    def __post_init__(self) -> None:
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise ConfigError(
                f"data: {type(self.dataset).__name__} has no length and no sample by number, which the order of "
                "samples and resuming need. Give a map-style Dataset, with __len__ and __getitem__."
            )
        known = {} if self.lengths is None else {"lengths": len(self.lengths)}
        known |= {} if self.shards is None else {"shards": sum(self.shards)}
        for name, count in known.items():
            if count != len(self):  # an order of samples that goes by them would leave some out
                raise ConfigError(
                    f"data: {type(self.dataset).__name__} has {len(self)} samples, and the {name} of its split are "
                    f"those of {count}. Give them for every sample."
                )

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, index: Tensor) -> "DatasetSplit":
        """The samples `index` alone, [n] int64; in ascending order they lie in the same shards."""
        numbers, shards = index.tolist(), None
        if self.shards is not None and bool((index[1:] > index[:-1]).all()):
            of_each = torch.bucketize(index, torch.tensor(self.shards).cumsum(0), right=True)
            shards = tuple(torch.bincount(of_each, minlength=len(self.shards)).tolist())
        plain = None if self.plain is None else Subset(self.plain, numbers)
        targets, lengths = (None if known is None else known[index] for known in (self.targets, self.lengths))
        dataset = Subset(self.dataset, numbers)
        return replace(self, dataset=dataset, plain=plain, targets=targets, lengths=lengths, shards=shards)


Split = TensorSplit | DatasetSplit


def as_indices(raw: Any) -> Any:
    """Tokens as an embedding takes them: int64."""
    return raw.long() if isinstance(raw, Tensor) else raw


def as_numbers(inputs: Any, split: Split) -> Any:
    """Inputs of a split as layers take them: floating-point, but for int32 and int64 where these are indices."""
    if not isinstance(inputs, Tensor):
        return tree_map_only(Tensor, lambda tensor: as_numbers(tensor, split), inputs)
    kept = inputs.dtype is split.dtype or inputs.is_complex() or (split.indices and inputs.dtype in INDICES)
    return inputs if kept else inputs.to(split.dtype)


def suit(model: nn.Module, *splits: Split) -> None:
    """Let a model get its inputs in the type of its parameters, float32 for most."""
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    for split in splits:
        split.dtype = dtype
        if isinstance(split, TensorSplit) and split.prepare is None and split.inputs.is_floating_point():
            split.inputs = split.inputs.to(dtype)  # once, and not in each batch


def first_infinite(numbers: Any) -> int | None:
    """The first row of [n, ...], or of any such tensor in a pytree, that holds NaN or infinity; None for none."""
    if not isinstance(numbers, Tensor):
        leaves = (first_infinite(leaf) for leaf in tree_leaves(numbers) if isinstance(leaf, Tensor))
        return min((row for row in leaves if row is not None), default=None)
    if not numbers.is_floating_point() or not len(numbers):
        return None
    at_once = max(1, LOOKED // max(1, numbers[0].numel()))
    for first in range(0, len(numbers), at_once):
        rows = numbers[first : first + at_once]
        if not rows.sum().isfinite():  # a sum of finite ones may be infinite
            found = (~rows.reshape(len(rows), -1).isfinite().all(1)).nonzero()
            if len(found):
                return first + int(found[0])
    return None
