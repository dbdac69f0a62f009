"""Columns of a Hugging Face dataset as inputs: images, numbers of one shape, or texts, to tensors."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.extras import import_extra
from launcher.data.arguments import check_whole
from launcher.data.images import StandardiseChannels
from launcher.data.pillow import LOOK, check_bits, converted, has_colours, look
from launcher.data.table_statistics import standardise, statistics
from launcher.data.text_columns import Sequences, Vocabulary, lengths_of, of_lists, of_texts
from launcher.data.token_rows import PADDING, token_split

AT_ONCE = 1 << 20  # numbers that are read at once to take their statistics


@dataclass
class Images:
    """Images of the library PIL to one uint8 tensor.

    Args:
        mode: PIL's name for what the model sees: `L` for grey, `RGB`.
        size: (width, height) in pixels.
        fit: Scale and crop at the centre what has another size; else that is an error.
        bits: That images of 16 bits use; None: those that the file names, else 16.
        sure: Whether the mode was asked for: then also colours become grey.
    """

    mode: str
    size: tuple[int, int]
    fit: bool
    bits: int | None = None
    sure: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as the model gets it."""
        return (len(self.mode), self.size[1], self.size[0])

    def __call__(self, images: Sequence[Any]) -> Tensor:
        """The images as [n, channels, height, width] uint8.

        Raises:
            BrokenFile: One is missing, has another size, or pixels that are no colours.
        """
        return torch.stack([self.pixels(image) for image in images])

    def pixels(self, image: Any) -> Tensor:
        """One image as [channels, height, width] uint8."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        if image is None:
            raise BrokenFile("data.input: a row has no image")
        if self.mode == "L" and not self.sure and has_colours(image):
            raise BrokenFile("data.input: an image has colours, and those looked at first are grey; set data.channels")
        image = converted(image, self.mode, self.bits)
        if image.size != self.size:
            if not self.fit:
                raise BrokenFile(
                    f"data.input: an image has {image.size[0]} x {image.size[1]} pixels, and the first one "
                    f"{self.size[0]} x {self.size[1]}; set data.image_size to bring all to one size"
                )
            image = ImageOps.fit(image, self.size, Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).view(*self.size[::-1], -1).permute(2, 0, 1).contiguous()


@dataclass
class Numbers:
    """Numbers of one shape to one float32 tensor, standardised.

    Args:
        shape: Of one sample.
        mean: [*shape] float64, subtracted.
        std: [*shape] float64, then divided by.
    """

    shape: tuple[int, ...]
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    def __call__(self, rows: Any) -> Tensor:
        """The rows as [n, *shape] float32."""
        return torch.from_numpy(standardise(self.raw(rows), self.mean, self.std)).float()

    def raw(self, rows: Any) -> np.ndarray:
        """The rows as they are, [n, *shape] float64.

        Raises:
            BrokenFile: One has another shape, or a value is missing or not finite.
        """
        size = math.prod(self.shape)
        try:
            whole = isinstance(rows, np.ndarray) and rows.dtype != object
            samples = [rows.reshape(len(rows), -1)] if whole else [np.asarray(row, np.float64)[None] for row in rows]
        except (ValueError, TypeError) as error:
            raise BrokenFile(f"data.input: a row holds no numbers of one shape ({error})") from error
        for sample in samples:
            if sample[0].size != size:
                raise BrokenFile(f"data.input: a row has {sample[0].size} numbers, and the first one {size}")
        numbers = np.concatenate(samples).astype(np.float64, copy=False).reshape(-1, *self.shape)
        if not np.isfinite(numbers).all():
            raise BrokenFile("data.input: a row has a number that is missing or not finite")
        return numbers


class Rows(Dataset):
    """Rows of a dataset, a whole batch at once.

    Args:
        dataset: A map-style dataset of the library, with one column, or several of numbers.
        targets: [n, ...], one for each row.
        decode: What the columns hold, as one tensor [n, ...].
    """

    preload = ("datasets",)  # workers of an evaluation start in 0.25 s, without it in 3 s (measured)

    def __init__(self, dataset: Any, targets: Tensor, decode: Callable[[Any], Tensor]) -> None:
        self.dataset, self.targets, self.decode = dataset, targets, decode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.decode(_together(self.dataset[indices])), self.targets[indices], strict=True))


def _together(batch: Mapping[str, Any]) -> Any:
    """The one column of a batch, or several of numbers side by side, [n, columns]."""
    columns = list(batch.values())
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


@dataclass(frozen=True)
class Look:
    """How images are read: the settings of these names in conf/data/huggingface.yaml."""

    image_size: int | None
    mean: Any
    std: Any
    channels: int | None
    bits: int | None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_whole("data.image_size", self.image_size, "side in pixels; it must be an integer >= 1, or null")
        if self.channels not in (1, 3, None) or isinstance(self.channels, bool):
            raise ConfigError(f"data.channels: {self.channels!r} is none of 1, 3 and null.")
        check_bits(self.bits)


class Inputs(NamedTuple):
    """What columns are as inputs."""

    shape: tuple[int, ...]  # of a sample; of sequences (the longest,)
    split: Callable[[str, Tensor], DatasetSplit]  # from the name of a split and its targets
    notes: list[str]  # lines for the log
    mean: Tensor | None = None  # of the shape of a sample, flat, float64: what was subtracted
    std: Tensor | None = None
    vocabulary: int | None = None  # tokens of sequences


def read_inputs(sets: Mapping[str, Any], names: list[str], look_at: Look, vocabulary: Vocabulary) -> Inputs:
    """The inputs in some columns of the splits of a dataset.

    Raises:
        ConfigError: The columns hold no images, numbers of one shape, texts or lists of tokens; or a row no such thing.
    """
    kinds = {name: kind_of(sets, name) for name in names}
    if set(kinds.values()) == {"text"} and len(names) == 1:
        texts = {split: text_cells(dataset, names[0]) for split, dataset in sets.items()}
        found, notes = of_texts(texts, names[0], vocabulary)
        return _of_sequences({"input_ids": found}, vocabulary.size, vocabulary.padding, notes)
    if set(kinds.values()) == {"tokens"} and (len(names) == 1 or "input_ids" in names):
        columns, sizes = {}, {}
        for name in names:
            key = "input_ids" if len(names) == 1 else name
            columns[key], sizes[key] = of_lists({split: _cells(rows, name) for split, rows in sets.items()}, name)
        return _of_sequences(columns, sizes["input_ids"], PADDING, [])
    if len(names) > 1 and set(kinds.values()) != {"numbers"}:
        raise ConfigError(
            f"data.input: {', '.join(f'{name} holds {kind}' for name, kind in kinds.items())}. Several columns must be "
            "one number each, or lists of tokens of which one is called input_ids."
        )
    if kinds[names[0]] == "images":
        decode, shape, prepare, notes = _of_images(sets["train"], names[0], look_at)
        return Inputs(shape, lambda split, targets: _of_rows(sets[split], names, targets, decode, prepare), notes)
    return _of_numbers(sets, names)


def kind_of(sets: Mapping[str, Any], name: str) -> str:
    """What a column holds: images, text, tokens, numbers, or what the library calls it."""
    dataset = sets["train"]
    if type(dataset.features[name]).__name__ == "Image":
        return "images"
    held = str(dataset.features.arrow_schema.field(name).type)
    if held in ("string", "large_string", "string_view"):
        return "text"
    if re.fullmatch(r"(large_)?list<\w+: u?int\d+>", held):
        if name in ("input_ids", "attention_mask", "token_type_ids"):
            return "tokens"
        lengths = np.concatenate([lengths_of(_cells(rows, name)) for rows in sets.values()])
        return "tokens" if bool((lengths != lengths[0]).any()) else "numbers"
    return "numbers" if re.fullmatch(r"u?int\d+|float|halffloat|double|bool|.*list<.*|decimal.*", held) else held


def _cells(dataset: Any, name: str) -> Any:
    """A column as one of Arrow's arrays."""
    return dataset.select_columns([name]).with_format("arrow")[:].column(0).combine_chunks()


def text_cells(dataset: Any, name: str) -> list[str | None]:
    """The texts in a column."""
    texts: list[str | None] = _cells(dataset, name).to_pylist()
    return texts


def _of_sequences(
    columns: Mapping[str, Mapping[str, Sequences]], vocabulary: int, padding: int, notes: list[str]
) -> Inputs:
    """Inputs of sequences of tokens, {key: {split: sequences}}."""
    first = columns["input_ids"]
    for key, found in columns.items():
        for split, one in found.items():
            if not np.array_equal(one.offsets, first[split].offsets):
                raise ConfigError(f"data.input: {key} and input_ids of {split} have other lengths in some row.")

    def split_of(split: str, targets: Tensor) -> DatasetSplit:
        tokens = {key: found[split].tokens for key, found in columns.items()}
        return token_split(tokens, first[split].offsets, targets, None, padding)

    return Inputs((max(one.longest for one in first.values()),), split_of, notes, vocabulary=vocabulary)


def _of_rows(
    dataset: Any, names: list[str], targets: Tensor, decode: Callable[[Any], Tensor], prepare: Any = None
) -> DatasetSplit:
    return DatasetSplit(Rows(dataset.select_columns(names), targets, decode), targets, prepare, batched=True)


def _of_images(
    dataset: Any, column: str, look_at: Look
) -> tuple[Images, tuple[int, ...], StandardiseChannels, list[str]]:
    """How images become a tensor, by some of them; their shape, what is left to do, and lines for the log."""
    import_extra("PIL.Image", "data.input: images are read with Pillow", "hf")
    first = dataset[0][column]
    if first is None:
        raise ConfigError(f"data.input: the first row has no image in {column!r}.")
    images_alone = dataset.select_columns([column])
    images, prepare, notes = decoding_images(lambda row: images_alone[row][column] or first, len(dataset), look_at)
    return images, images.shape, prepare, notes


def _of_numbers(sets: Mapping[str, Any], names: list[str]) -> Inputs:
    """Inputs of numbers, standardised by the training split: one column of one shape, or several of one number each."""
    dataset = sets["train"]
    try:
        row = np.asarray(_together(dataset.select_columns(names).with_format("numpy")[:1])[0])
        if row.dtype.kind not in "fiubO":  # dates would become numbers without a word
            raise TypeError
        row = row.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"data.input: column {', '.join(map(repr, names))} holds {dataset.features[names[0]]}, neither images, "
            f"numbers of one shape nor text; the columns are: {', '.join(dataset.column_names)}."
        ) from error
    shape = row.shape or (1,)
    # As NumPy's own float64: the library would make them float32.
    sets = {split: one.with_format("numpy", dtype=np.float64) for split, one in sets.items()}
    decode = Numbers(shape)
    decode.mean, decode.std = measure(sets, names, decode)
    mean, std = (torch.from_numpy(numbers.reshape(-1)) for numbers in (decode.mean, decode.std))
    return Inputs(shape, lambda split, targets: _of_rows(sets[split], names, targets, decode), [], mean, std)


def decoding_images(
    image: Callable[[int], Any], count: int, look_at: Look
) -> tuple[Images, StandardiseChannels, list[str]]:
    """How images of PIL become a tensor, what is left to do with a batch, and lines for the log.

    Args:
        image: From the number of a row to its image; some are looked at.
        count: Number of rows.
        look_at: Settings.

    Raises:
        ConfigError: The mean or the deviation does not fit.
    """
    coloured, notes = look(map(image, range(0, count, -(-count // LOOK))), look_at.bits)
    mode = "L" if look_at.channels == 1 or (look_at.channels is None and not coloured) else "RGB"
    side = look_at.image_size
    size = image(0).size if side is None else (side, side)
    mean, std = (
        [255 * value for value in per_channel(f"data.{name}", given, len(mode))]
        for name, given in (("mean", look_at.mean), ("std", look_at.std))
    )
    if min(std) <= 0:
        raise ConfigError(f"data.std: {look_at.std!r} has a value that is not above 0.")
    images = Images(mode, size, side is not None, look_at.bits, look_at.channels is not None)
    return images, StandardiseChannels(mean, std), notes


def measure(sets: Mapping[str, Any], names: list[str], numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of columns of numbers over the training split.

    Raises:
        ConfigError: A row of any split is none that the model could take.
    """

    def pieces(split: str) -> Iterator[np.ndarray]:
        dataset = sets[split].select_columns(names)
        at_once = max(1, AT_ONCE // math.prod(numbers.shape))
        for first in range(0, len(dataset), at_once):
            yield numbers.raw(_together(dataset[first : first + at_once]))

    try:
        found = statistics(pieces("train"))
        for _ in chain(pieces("validation"), pieces("test")):  # looked through alone
            pass
        return found
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error


def per_channel(setting: str, given: Any, channels: int) -> list[float]:
    """A number for each channel, from one for all or from a list.

    Raises:
        ConfigError: It is neither.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * channels
    if len(values) != channels or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"{setting}: {given!r} is neither one number nor one for each of {channels} channels.")
    return values
