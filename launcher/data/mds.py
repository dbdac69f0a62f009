"""MosaicML Streaming's directories on this machine: rows of tokens to continue, or images and their classes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.extras import import_extra
from launcher.data.arguments import check_seed, check_unused, check_whole
from launcher.data.columns import Images, Look, decoding_images
from launcher.data.mds_files import WHOLE, RowShard, array_of, checksum, find_sets, image_of
from launcher.data.shard_files import KINDS, OpenShards
from launcher.data.source import Data
from launcher.data.splitting import split_off

IMAGES = ("jpeg", "png", "pil", "bytes")  # encodings of a column that may hold images


def load(
    path: str,
    input: str | None,
    target: str | None,
    dtype: str | None,
    vocabulary: int | None,
    classes: int | None,
    image_size: int | None,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    open: int,
    validation: float,
    test: float,
    split_seed: int,
    channels: int | None,
    bits: int | None,
) -> Data:
    """Open the shards of each split; the settings are those of conf/data/mds.yaml.

    Without a target a row is tokens, each but the last to be followed by the next. With one the input is an image, and
    the target its class, a whole number. A split without a directory is a share of the training rows, of each class
    alike where `classes` is None: then the classes of all rows are read at the start.

    Raises:
        ConfigError: The directory, a column or a row is missing or unfit, or a setting is outside its range.
    """
    check_whole("data.open", open, "number of shards; it must be an integer >= 1, such as 16")
    look_at = Look(image_size, mean, std, channels, bits)
    sets = find_sets(path)
    encoding = _encoding("data.input", input, sets)
    assert input is not None
    check_seed("data.split_seed", split_seed)
    rows: dict[str, Rows] = {split: Rows(shards, input, open) for split, shards in sets.items()}
    if target is None:
        of_images = {"image_size": image_size, "classes": classes, "channels": channels, "bits": bits}
        check_unused(of_images, "without data.target the rows are tokens")
        return _language(rows, encoding, dtype, vocabulary, {"test": test, "validation": validation}, split_seed)
    check_unused({"dtype": dtype, "vocabulary": vocabulary}, "with data.target the rows are images")
    labels, count, notes = _classes(rows, target, classes)
    if encoding.partition(":")[0] not in IMAGES:
        raise ConfigError(f"data.input: its column is {encoding}; images are {', '.join(IMAGES)}.")
    import_extra("PIL.Image", "data.input: images are read with Pillow", "hf")
    images, standardise, told = decoding_images(rows["train"].image, len(rows["train"]), look_at)
    parts = {}
    for split, of in rows.items():
        of.decode, of.target = images, target
        of.classes = count
        parts[split] = of.split(None if labels is None else labels[split], standardise)
    _hold_out(parts, {"test": test, "validation": validation}, split_seed)
    return Data(
        name="mds",
        task="classification",
        input_shape=images.shape,
        num_outputs=count,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        notes=[*notes, *told],
    )


def _encoding(setting: str, column: Any, sets: dict[str, list[RowShard]]) -> str:
    """How a column is encoded, the same in every shard."""
    found = {dict(shard.columns).get(column) for shards in sets.values() for shard in shards}
    encoding = next(iter(found))
    if len(found) > 1 or encoding is None:
        known = ", ".join(name for name, _ in sets["train"][0].columns)
        raise ConfigError(f"{setting}: not every shard has the one column {column!r}; the columns are: {known}.")
    return encoding


def _language(
    rows: dict[str, "Rows"],
    encoding: str,
    dtype: str | None,
    vocabulary: int | None,
    shares: dict[str, float],
    seed: int,
) -> Data:
    """Rows of as many tokens each."""
    kind, *_ = encoding.split(":")
    if kind not in ("bytes", "ndarray"):
        raise ConfigError(
            f"data.target: null is for tokens, and the column of data.input is {encoding}, not ndarray or bytes of "
            "them; name the column of the classes."
        )
    if kind == "bytes" and dtype not in KINDS:
        raise ConfigError(
            f"data.dtype: {dtype!r} is none of {', '.join(KINDS)}; it says what a token is in a column of bytes, as in "
            "data.dtype=int64."
        )
    if vocabulary is None:
        raise ConfigError("data.vocabulary: set the number of tokens that there are, as in data.vocabulary=50257.")
    check_whole("data.vocabulary", vocabulary, "size of a vocabulary, such as 50257")
    for of in rows.values():
        of.dtype, of.vocabulary = dtype if kind == "bytes" else None, vocabulary
    try:
        block = len(rows["train"].tokens(0)) - 1
        for of in rows.values():
            of.block = block
            of[0]
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error
    if block < 1:
        raise ConfigError(f"data.input: a row has {block + 1} tokens; it takes two, one to go on from and the next.")
    parts = {split: of.split(None, None) for split, of in rows.items()}
    _hold_out(parts, shares, seed)
    return Data("mds", "language", (block,), vocabulary, parts["train"], parts["validation"], parts["test"])


def _classes(
    rows: dict[str, "Rows"], target: str, classes: int | None
) -> tuple[dict[str, Tensor] | None, int, list[str]]:
    """The class of each row of each split, where they are counted; the number of classes; lines for the log."""
    encoding = _encoding("data.target", target, {split: list(of.shards) for split, of in rows.items()})
    if encoding not in WHOLE:
        raise ConfigError(
            f"data.target: column {target!r} is {encoding}; a class is a whole number: {', '.join(WHOLE)}."
        )
    if classes is not None:
        return None, check_whole("data.classes", classes, "number of classes, such as 1000"), []
    labels = {split: torch.from_numpy(of.whole_numbers(target)) for split, of in rows.items()}
    lowest, highest = (int(found) for found in (labels["train"].min(), labels["train"].max()))
    if lowest < 0 or highest < 1:
        raise ConfigError(f"data.target: column {target!r} runs from {lowest} to {highest}; classes are 0, 1, 2, ...")
    return labels, highest + 1, [f"{highest + 1} classes, as the highest of all rows is {highest}"]


def _hold_out(parts: dict[str, DatasetSplit], shares: dict[str, float], seed: int) -> None:
    """Take a share of the training rows for each split that has no directory."""
    for split, share in shares.items():
        if split not in parts:
            train = parts["train"]
            kept, out = split_off(split, len(train), share, seed, train.targets, f"{len(train)} rows")
            parts[split], parts["train"] = train.at(out), train.at(kept)


class Rows(Dataset):
    """Rows of shards: tokens and those one further, or an image and its class.

    Args:
        shards: The shards.
        column: Of the inputs.
        most: Shards that are open at once.
    """

    def __init__(self, shards: Sequence[RowShard], column: str, most: int) -> None:
        self.shards, self.column, self.most = shards, column, most
        self.encoding = dict(shards[0].columns)[column]
        self.opened = OpenShards(shards, most)
        self._ends = np.cumsum([shard.rows for shard in shards])
        self.dtype: str | None = None  # of tokens in bytes
        self.vocabulary, self.block, self.classes = 0, 0, 0
        self.target: str | None = None  # column of the classes; None: tokens
        self.decode: Images | None = None

    def split(self, labels: Tensor | None, prepare: Callable[[Any], Any] | None) -> DatasetSplit:
        """All rows as a split, with their classes where they are known."""
        return DatasetSplit(
            self,
            labels,
            prepare,
            batched=True,
            checksum=checksum(self.shards),
            shards=tuple(shard.rows for shard in self.shards),
            open_shards=self.most,
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Rows by their numbers: tokens [block] int32 and those one further, or an image uint8 and its class."""
        found: list[Any] = [None] * len(indices)
        for place in np.argsort(indices, kind="stable").tolist():  # shard by shard, so that each is opened once
            row = indices[place]
            if self.target is None:
                tokens = torch.from_numpy(self._checked(row).astype(np.int32))
                found[place] = (tokens[:-1], tokens[1:])
            else:
                assert self.decode is not None
                found[place] = (self._pixels(row), self._class(row))
        return found

    def whole_numbers(self, column: str) -> np.ndarray:
        """A column of whole numbers of all rows, [n] int64."""
        return np.concatenate(
            [shard.whole_numbers(self.opened[number], column) for number, shard in enumerate(self.shards)]
        )

    def tokens(self, row: int) -> np.ndarray:
        """The tokens of a row.

        Raises:
            BrokenFile: It holds none.
        """
        data = self._cell(row, self.column)
        try:
            return array_of(data, self.encoding) if self.dtype is None else np.frombuffer(data, self.dtype)
        except (ValueError, IndexError, TypeError) as error:
            raise BrokenFile(f"data.input: row {row} of {self._name()} holds no tokens ({error})") from error

    def image(self, row: int) -> Any:
        """The image of a row, of PIL.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return self._image(row)
        except BrokenFile as error:
            raise ConfigError(error.in_short()) from error

    def _checked(self, row: int) -> np.ndarray:
        tokens = self.tokens(row)
        if len(tokens) != self.block + 1:
            raise BrokenFile(
                f"data.input: row {row} of {self._name()} has {len(tokens)} tokens, and the first one {self.block + 1}"
            )
        strange = tokens[(tokens < 0) | (tokens >= self.vocabulary)]
        if len(strange):
            raise BrokenFile(
                f"data.vocabulary: row {row} of {self._name()} has the token {strange[0]}, which is none of "
                f"0..{self.vocabulary - 1}"
            )
        return tokens

    def _image(self, row: int) -> Any:
        try:
            image = image_of(self._cell(row, self.column), self.encoding)
            image.load()
        except Exception as error:  # Pillow raises whatever its decoders do
            raise BrokenFile(
                f"data.input: row {row} of {self._name()} is no image that can be read ({error})"
            ) from error
        return image

    def _pixels(self, row: int) -> Tensor:
        assert self.decode is not None
        return self.decode.pixels(self._image(row))

    def _class(self, row: int) -> int:
        assert self.target is not None
        encoding = dict(self.shards[0].columns)[self.target]
        label = int(np.frombuffer(self._cell(row, self.target), WHOLE[encoding])[0])
        if not 0 <= label < self.classes:
            raise BrokenFile(
                f"data.target: row {row} of {self._name()} is of the class {label}, which is none of "
                f"0..{self.classes - 1}"
            )
        return label

    def _cell(self, row: int, column: str) -> bytes:
        number = int(np.searchsorted(self._ends, row, side="right"))
        shard = self.shards[number]
        return shard.cell(self.opened[number], row - int(self._ends[number]) + shard.rows, column)

    def _name(self) -> str:
        return str(self.shards[0].file.parent)
