"""A dataset in Hugging Face's format on this machine: images or numbers in one column, the target in another."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.images import LOOK, StandardiseChannels, check_bits, converted, has_colours, look
from launcher.data.source import Data, check_flag, check_fraction, check_seed, split
from launcher.data.table import TASKS, check_task, doubts, guess_task, standardise, statistics, target_statistics, told

FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
NAMES = {"train": ["train"], "validation": ["validation", "valid", "val", "dev"], "test": ["test"]}
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
        dataset: A map-style dataset of the library, with one column.
        targets: [n, ...], one for each row.
        decode: What the column holds, as one tensor [n, ...].
    """

    preload = ("datasets",)  # workers of an evaluation start in 0.25 s, without it in 3 s (measured)

    def __init__(self, dataset: Any, targets: Tensor, decode: Callable[[Any], Tensor]) -> None:
        self.dataset, self.targets, self.decode = dataset, targets, decode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        (column,) = self.dataset[indices].values()
        return list(zip(self.decode(column), self.targets[indices], strict=True))


def load(
    path: str,
    name: str | None,
    download: bool,
    splits: Mapping[str, str | None],
    input: str,
    target: str,
    task: str,
    image_size: int | None,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    validation: float,
    test: float,
    split_seed: int,
    channels: int | None,
    bits: int | None,
) -> Data:
    """Open a dataset, choose two of its columns and part it.

    Images are decoded by the workers, as bytes, and standardised a batch at a time. Numbers, and the target of a
    regression, are standardised by the training part, as those of data=csv.

    Args:
        path: A directory written by save_to_disk; a parquet, csv or json file, or a directory of such files; or the
            name of a dataset that is in the library's cache.
        name: Configuration of a dataset that has more than one.
        download: Fetch a named dataset that is not in the cache.
        splits: Split of the dataset for `train`, `validation` and `test`; None for the one that is called so, or
            where there is none for a share of train.
        input: Column of images, or of numbers, vectors or tensors of one shape.
        target: Column of classes (a ClassLabel, integers, truth values or texts), or of numbers or vectors.
        task: `classification`; `multilabel`: vectors of 0 and 1, each a label that is there or not; `regression`; or
            `auto`: vectors are labels where they hold nothing but 0 and 1, and else numbers; numbers are taken as
            data=csv takes them; all else is classes.
        image_size: Side in pixels of the square that images are scaled and cropped to; None leaves them as they are.
        mean: Mean of the image channels, which run from 0 to 1; one for all, or one each.
        std: Their standard deviation, as mean.
        validation: Share of what remains of train for the validation part, in (0, 1), where there is no split for it.
        test: Share of train for the test part, in (0, 1), where there is no split for it.
        split_seed: Seed of that choice.
        channels: Of images, 1 or 3; None: 3 where one of those looked at first has colours.
        bits: That images of 16 bits use; None: those that the file names, else 16.

    Raises:
        ConfigError: The dataset, a split, a column or a value is missing or unfit, a setting is outside its range, or
            a package is missing.
    """
    check_task(task, (*TASKS, "multilabel"))
    check_bits(bits)
    if channels not in (1, 3, None) or isinstance(channels, bool):
        raise ConfigError(f"data.channels: {channels!r} is none of 1, 3 and null.")
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise ConfigError(f"data.image_size: {image_size!r} is no side in pixels; it must be an integer >= 1, or null.")
    seed = check_seed("data.split_seed", split_seed)
    found = choose(read(path, name, check_flag("data.download", download)), splits, path)
    for setting, column in (("data.input", input), ("data.target", target)):
        for dataset in found.values():
            if column not in dataset.column_names:
                columns = ", ".join(dataset.column_names)
                raise ConfigError(f"{setting}: {path} has no column {column!r}; it has: {columns}.")
    values, task, classes, notes = read_targets(found, target, task)
    for part, share in (("test", test), ("validation", validation)):
        if part not in found:
            count, labels = len(found["train"]), torch.from_numpy(values["train"]) if classes is not None else None
            check_fraction(f"data.{part}", share)
            kept, out = split(count, share, seed, labels) if count > 1 else (torch.arange(count), torch.arange(0))
            if len(out) == 0:
                raise ConfigError(f"data.{part}: {count} rows of {path} leave none to split off; give more rows.")
            for name_of, index in ((part, out.numpy()), ("train", kept.numpy())):
                found[name_of], values[name_of] = found["train"].select(index), values["train"][index]
    decode, shape, prepare, more = decoding(found["train"], input, image_size, mean, std, channels, bits)
    notes += more
    input_mean = input_std = target_mean = target_std = None
    if isinstance(decode, Numbers):
        # As NumPy's own float64: the library would make them float32.
        found = {part: dataset.with_format("numpy", dtype=np.float64) for part, dataset in found.items()}
        decode.mean, decode.std = measure(found, input, decode)
        input_mean, input_std = (torch.from_numpy(numbers.reshape(-1)) for numbers in (decode.mean, decode.std))
    if task == "regression":
        centre, spread = target_statistics(values["train"])
        values = {part: standardise(rows, centre, spread) for part, rows in values.items()}
        target_mean, target_std = torch.from_numpy(centre), torch.from_numpy(spread)

    def part_of(part: str) -> DatasetSplit:
        targets = torch.from_numpy(values[part])
        return DatasetSplit(Rows(found[part].select_columns([input]), targets, decode), targets, prepare, batched=True)

    return Data(
        name="huggingface",
        task=task,
        input_shape=shape,
        num_outputs=values["train"].shape[1] if classes is None else len(classes),
        train=part_of("train"),
        validation=part_of("validation"),
        test=part_of("test"),
        class_names=classes,
        target_mean=target_mean,
        target_std=target_std,
        input_mean=input_mean,
        input_std=input_std,
        notes=notes,
    )


def read(path: Any, name: str | None, download: bool) -> dict[str, Any]:
    """The splits of a dataset by name, mapped into memory.

    Raises:
        ConfigError: The library is missing, or does not find or read the dataset.
    """
    if not path or not isinstance(path, str):
        raise ConfigError(
            f"data.path: {path!r} is no dataset; name a directory of save_to_disk, a parquet, csv or json file, or a "
            "dataset in the cache."
        )
    if not download:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # the library looks at it when it is imported
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"data=huggingface reads with the package datasets, which does not import ({error}): "
            "pip install 'hydra-accelerate-launcher[hf]'"
        ) from error
    datasets.disable_progress_bars()
    place = Path(path).expanduser()
    if place.is_file() and place.suffix not in FILES:
        raise ConfigError(f"data.path: {path} is none of the files that can be read: {', '.join(FILES)}.")
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = datasets.load_from_disk(str(place))
        elif place.is_file():
            found = datasets.load_dataset(FILES[place.suffix], data_files=str(place))
        else:
            found = datasets.load_dataset(str(place) if place.is_dir() else path, name)
    except Exception as error:  # the library raises whatever its parts do
        cause = " ".join(str(error.__cause__ or error).split())
        hint = "" if place.exists() or download else " data.download=true fetches a dataset that is not here."
        raise ConfigError(f"data.path: cannot read {path}: {cause}.{hint}") from error
    # Without the format that it may have been saved with, which hides columns and changes types.
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    return {split: dataset.with_format(None) for split, dataset in splits.items()}


def choose(sets: Mapping[str, Any], splits: Any, path: str) -> dict[str, Any]:
    """The splits that become `train`, `validation` and `test`; the latter two only where they are there and not taken.

    Raises:
        ConfigError: A split is named that is not there or is empty, or twice, or none is there to train on.
    """
    known = ", ".join(sets)
    if not isinstance(splits, Mapping) or set(splits) != set(NAMES):
        raise ConfigError(f"data.splits: {splits!r} must name a split, or null, for each of {', '.join(NAMES)}.")
    found: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for part, wanted in splits.items():
        if wanted is not None and wanted not in sets:
            raise ConfigError(f"data.splits.{part}: {path} has no split {wanted!r}; it has: {known}.")
        if wanted is not None and wanted in taken:
            raise ConfigError(f"data.splits.{part}: {wanted!r} is what {taken[wanted]} takes; null splits off a share.")
        taken |= {wanted: part} if wanted is not None else {}
    for part, wanted in splits.items():
        chosen = wanted or next((name for name in NAMES[part] if name in sets and name not in taken), None)
        if chosen is not None:
            found[part] = sets[chosen]
            if len(found[part]) == 0:
                raise ConfigError(f"data.splits.{part}: the split {chosen!r} of {path} has no rows.")
    if "train" not in found:
        raise ConfigError(f"data.splits.train: {path} has no split called train; name one of: {known}.")
    return found


def read_targets(
    sets: Mapping[str, Any], column: str, task: str
) -> tuple[dict[str, np.ndarray], str, list[str] | None, list[str]]:
    """The targets of each part, what they are, the names of the classes, and lines for the log.

    Returns:
        Part to [n] int64 classes and their names; or part to [n, d] float64 numbers, and no names.

    Raises:
        ConfigError: A target is missing, is of no kind that the task can predict, or of a class that training lacks.
    """
    values: dict[str, np.ndarray] = {}
    for part, dataset in sets.items():
        cells = dataset.select_columns([column]).with_format("arrow")[:].column(0)
        if cells.null_count:
            raise ConfigError(f"data.target: {cells.null_count} rows of {part} have no {column!r}; remove them.")
        try:
            values[part] = np.array(cells.to_pylist() if "list" in str(cells.type) else cells.to_numpy())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"data.target: column {column!r} holds lists of different lengths.") from error
    feature, train = sets["train"].features[column], values["train"]
    named = getattr(feature, "names", None)
    notes: list[str] = []
    if task == "auto" and train.ndim > 1:
        several = train.ndim == 2 and all(
            rows.dtype.kind in "iufb" and np.isin(rows, (0, 1)).all() for rows in values.values()
        )
        task = "multilabel" if several else "regression"
        notes.append(f"target {column!r} holds vectors: a {task}" + ", of 0 and 1" * several)
    elif task == "auto":
        task = "classification"
        if named is None and train.dtype.kind in "iuf":
            distinct = np.unique(train)
            whole = train.dtype.kind in "iu" or bool((distinct == np.floor(distinct)).all())
            task = guess_task(len(distinct), len(train), whole)
            notes.append(told(column, len(distinct), task))
    if task in ("regression", "multilabel"):
        for part, rows in values.items():
            if rows.ndim > 2 or rows.dtype.kind not in "fiub" or rows.shape[1:] != train.shape[1:]:
                raise ConfigError(
                    f"data.target: column {column!r} holds {feature} and no numbers to predict; data.task={task} needs "
                    "numbers, or vectors of one length."
                )
            values[part] = rows.astype(np.float64).reshape(len(rows), -1)
            if not np.isfinite(values[part]).all():
                raise ConfigError(f"data.target: column {column!r} of {part} has a value that is not finite.")
            if task == "multilabel" and not np.isin(values[part], (0, 1)).all():
                raise ConfigError(
                    f"data.target: column {column!r} of {part} has other values than 0 and 1, which "
                    "data.task=multilabel takes; data.task=regression takes numbers."
                )
        return values, task, None, notes
    plain = train.dtype.kind in "fiubU" or all(isinstance(value, str | Decimal) for value in train.flat)
    if train.ndim > 1 or not plain:
        raise ConfigError(
            f"data.target: column {column!r} holds {feature} and no classes; data.task=multilabel takes vectors of 0 "
            "and 1, data.task=regression numbers."
        )
    known = np.unique(train) if named is None else np.arange(len(named))
    for part, rows in values.items():
        own = getattr(sets[part].features[column], "names", None)
        if own != named:  # each part may number the names in its own way
            if own is None or named is None or set(own) - set(named):
                raise ConfigError(
                    f"data.target: column {column!r} of {part} has other classes ({own}) than train ({named})."
                )
            rows = np.where(rows < 0, rows, np.array([named.index(name) for name in own])[rows])
        strange = ~np.isin(rows, known)
        if strange.any():
            row = int(strange.argmax())
            raise ConfigError(
                f"data.target: row {row} of {part} has {column!r} = {rows[row]!r}, which is none of the "
                f"{len(known)} classes (-1 is for a row without a label); data.task=regression takes numbers."
            )
        values[part] = np.searchsorted(known, rows).astype(np.int64)
    if len(known) < 2:
        raise ConfigError(f"data.target: {column!r} has one class, {known[0]!r}; at least two are needed.")
    classes = [str(name) for name in (known.tolist() if named is None else named)]
    return values, task, classes, [*notes, *doubts(classes)]


def decoding(
    dataset: Any, column: str, image_size: int | None, mean: Any, std: Any, channels: int | None, bits: int | None
) -> tuple[Images | Numbers, tuple[int, ...], StandardiseChannels | None, list[str]]:
    """How a column becomes a tensor, the shape of a sample, what is left to do with a batch, and lines for the log.

    By the first row; of images, by some at equal distances.

    Raises:
        ConfigError: It is no column of images or numbers, or mean or std do not fit.
    """
    feature = dataset.features[column]
    if type(feature).__name__ == "Image":
        try:
            first = dataset[0][column]
        except ImportError as error:
            raise ConfigError(
                f"data.input: images are read with Pillow, which does not import ({error}): "
                "pip install 'hydra-accelerate-launcher[hf]'"
            ) from error
        if first is None:
            raise ConfigError(f"data.input: the first row has no image in {column!r}.")
        rows, images_alone = range(0, len(dataset), -(-len(dataset) // LOOK)), dataset.select_columns([column])
        coloured, notes = look((images_alone[row][column] or first for row in rows), bits)
        mode = "L" if channels == 1 or (channels is None and not coloured) else "RGB"
        size = first.size if image_size is None else (image_size, image_size)
        standardise_channels = StandardiseChannels(
            [255 * value for value in per_channel("data.mean", mean, len(mode))],
            [255 * value for value in per_channel("data.std", std, len(mode))],
        )
        if min(standardise_channels.std) <= 0:
            raise ConfigError(f"data.std: {std!r} has a value that is not above 0.")
        images = Images(mode, size, image_size is not None, bits, channels is not None)
        return images, (len(mode), size[1], size[0]), standardise_channels, notes
    try:
        row = np.asarray(dataset.with_format("numpy")[0][column])
        if row.dtype.kind not in "fiubO":  # dates would become numbers without a word
            raise TypeError
        row = row.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"data.input: column {column!r} holds {feature}, neither images nor numbers; the columns are: "
            f"{', '.join(dataset.column_names)}."
        ) from error
    shape = row.shape or (1,)
    return Numbers(shape), shape, None, []


def measure(sets: Mapping[str, Any], column: str, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a column of numbers over the training part.

    Raises:
        ConfigError: A row of any part is none that the model could take.
    """

    def pieces(part: str) -> Iterator[np.ndarray]:
        dataset = sets[part].select_columns([column])
        at_once = max(1, AT_ONCE // math.prod(numbers.shape))
        for first in range(0, len(dataset), at_once):
            yield numbers.raw(dataset[first : first + at_once][column])

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
