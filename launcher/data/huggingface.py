"""A dataset in Hugging Face's format on this machine: images or numbers in one column, the target in another."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.data import Data, DatasetPart, check_flag, check_fraction, check_seed, split
from launcher.data.images import StandardiseChannels, converted
from launcher.data.table import statistics
from launcher.errors import BrokenFile, ConfigError

FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
NAMES = {"train": ["train"], "validation": ["validation", "valid", "val", "dev"], "test": ["test"]}


@dataclass
class Images:
    """Images of the library PIL to one uint8 tensor.

    Args:
        mode: PIL's name for what the model sees: `L` for grey, `RGB`.
        size: (width, height) in pixels.
        fit: Scale and crop at the centre what has another size; else that is an error.
    """

    mode: str
    size: tuple[int, int]
    fit: bool

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
        image = converted(image, self.mode)
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
    """Numbers of one shape to one float32 tensor.

    Args:
        shape: Of one sample.
    """

    shape: tuple[int, ...]

    def __call__(self, rows: Any) -> Tensor:
        """The rows as [n, *shape] float32.

        Raises:
            BrokenFile: One has another shape, or a value that is missing or not finite.
        """
        samples = [np.asarray(row, np.float32).reshape(-1) for row in rows]
        for sample in samples:
            if sample.size != math.prod(self.shape):
                raise BrokenFile(
                    f"data.input: a row has {sample.size} numbers, and the first one {math.prod(self.shape)}"
                )
            if not np.isfinite(sample).all():
                raise BrokenFile("data.input: a row has a value that is missing or not finite")
        return torch.from_numpy(np.array(samples)).view(-1, *self.shape)


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
) -> Data:
    """Open a dataset, choose two of its columns and part it.

    Images are decoded by the workers, as bytes, and standardised a batch at a time. Numbers reach the model as they
    are. The target of a regression is standardised by its training part, as `Data.target_mean` and `target_std` say,
    but for vectors of 0 and 1: several classes that may occur together.

    Args:
        path: A directory written by save_to_disk; a parquet, csv or json file, or a directory of such files; or the
            name of a dataset that is in the library's cache.
        name: Configuration of a dataset that has more than one.
        download: Fetch a named dataset that is not in the cache.
        splits: Split of the dataset for `train`, `validation` and `test`; None for the one that is called so, or
            where there is none for a share of train.
        input: Column of images, or of numbers, vectors or tensors of one shape.
        target: Column of classes (a ClassLabel, integers, truth values or texts), or of numbers or vectors.
        task: `classification`, `regression`, or `auto`: a regression where the target is a float or a vector.
        image_size: Side in pixels of the square that images are scaled and cropped to; None leaves them as they are.
        mean: Mean of the image channels, which run from 0 to 1; one for all, or one each.
        std: Their standard deviation, as mean.
        validation: Share of what remains of train for the validation part, in (0, 1), where there is no split for it.
        test: Share of train for the test part, in (0, 1), where there is no split for it.
        split_seed: Seed of that choice.

    Raises:
        ConfigError: The dataset, a split, a column or a value is missing or unfit, a setting is outside its range, or
            a package is missing.
    """
    if task not in ("auto", "classification", "regression"):
        raise ConfigError(f"data.task: {task!r} is unknown; pick auto, classification or regression.")
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise ConfigError(f"data.image_size: {image_size!r} is no side in pixels; it must be an integer >= 1, or null.")
    seed = check_seed("data.split_seed", split_seed)
    found = choose(read(path, name, check_flag("data.download", download)), splits, path)
    for setting, column in (("data.input", input), ("data.target", target)):
        for dataset in found.values():
            if column not in dataset.column_names:
                columns = ", ".join(dataset.column_names)
                raise ConfigError(f"{setting}: {path} has no column {column!r}; it has: {columns}.")
    values, classes = read_targets(found, target, task)
    for part, share in (("test", test), ("validation", validation)):
        if part not in found:
            count, labels = len(found["train"]), torch.from_numpy(values["train"]) if classes is not None else None
            check_fraction(f"data.{part}", share)
            kept, out = split(count, share, seed, labels) if count > 1 else (torch.arange(count), torch.arange(0))
            if len(out) == 0:
                raise ConfigError(f"data.{part}: {count} rows of {path} leave none to split off; give more rows.")
            for name_of, index in ((part, out.numpy()), ("train", kept.numpy())):
                found[name_of], values[name_of] = found["train"].select(index), values["train"][index]
    decode, shape, prepare = decoding(found["train"], input, image_size, mean, std)
    if isinstance(decode, Numbers):
        found = {part: dataset.with_format("numpy") for part, dataset in found.items()}
    target_mean = target_std = None
    # A vector of nothing but 0 and 1 says which of several things are there, as binary_cross_entropy takes it.
    several = classes is None and values["train"].shape[1] > 1 and np.isin(values["train"], (0, 1)).all()
    if classes is None and not several:
        centre, spread = statistics(values["train"])
        if (np.ptp(values["train"], axis=0) == 0).any():
            raise ConfigError(f"data.target: {target!r} is the same in all training rows; there is nothing to predict.")
        values = {part: (rows - centre) / spread for part, rows in values.items()}
        target_mean, target_std = torch.from_numpy(centre).float(), torch.from_numpy(spread).float()

    def part_of(part: str) -> DatasetPart:
        targets = torch.from_numpy(values[part])
        targets = targets.float() if classes is None else targets
        return DatasetPart(Rows(found[part].select_columns([input]), targets, decode), targets, prepare, batched=True)

    return Data(
        name="huggingface",
        task="regression" if classes is None else "classification",
        input_shape=shape,
        num_outputs=values["train"].shape[1] if classes is None else len(classes),
        train=part_of("train"),
        validation=part_of("validation"),
        test=part_of("test"),
        class_names=classes,
        target_mean=target_mean,
        target_std=target_std,
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
            "pip install 'launcher[hf]'"
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
    return dict(found) if isinstance(found, dict) else {"train": found}


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


def read_targets(sets: Mapping[str, Any], column: str, task: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The targets of each part, and the names of the classes.

    Returns:
        Part to [n] int64 classes and the names; or part to [n, d] float64 numbers, and None.

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
    vectors = train.ndim > 1 or train.dtype.kind == "f"
    if task == "regression" or (task == "auto" and vectors):
        for part, rows in values.items():
            if rows.ndim > 2 or rows.dtype.kind not in "fiub" or rows.shape[1:] != train.shape[1:]:
                raise ConfigError(f"data.target: column {column!r} holds {feature} and no numbers to predict.")
            values[part] = rows.astype(np.float64).reshape(len(rows), -1)
            if not np.isfinite(values[part]).all():
                raise ConfigError(f"data.target: column {column!r} of {part} has a value that is not finite.")
        return values, None
    if train.ndim > 1 or train.dtype.kind not in "fiubOU":
        raise ConfigError(f"data.target: column {column!r} holds {feature} and no classes.")
    names = getattr(feature, "names", None)
    known = np.unique(train) if names is None else np.arange(len(names))
    for part, rows in values.items():
        strange = ~np.isin(rows, known)
        if strange.any():
            row = int(strange.argmax())
            raise ConfigError(
                f"data.target: row {row} of {part} has {column!r} = {rows[row]!r}, which is none of the "
                f"{len(known)} classes (-1 is for a row without a label)."
            )
        values[part] = np.searchsorted(known, rows).astype(np.int64)
    if len(known) < 2:
        raise ConfigError(f"data.target: {column!r} has one class, {known[0]!r}; at least two are needed.")
    return values, [str(name) for name in (known.tolist() if names is None else names)]


def decoding(
    dataset: Any, column: str, image_size: int | None, mean: Any, std: Any
) -> tuple[Images | Numbers, tuple[int, ...], StandardiseChannels | None]:
    """How a column becomes a tensor, the shape of a sample, and what is left to do with a batch; by the first row.

    Raises:
        ConfigError: It is no column of images or numbers, or mean or std do not fit.
    """
    feature = dataset.features[column]
    if type(feature).__name__ == "Image":
        try:
            first = dataset[0][column]
        except ImportError as error:
            raise ConfigError(
                f"data.input: images are read with Pillow, which does not import ({error}): pip install 'launcher[hf]'"
            ) from error
        if first is None:
            raise ConfigError(f"data.input: the first row has no image in {column!r}.")
        mode = "L" if first.mode in ("1", "L") or first.mode.startswith("I;16") else "RGB"
        size = first.size if image_size is None else (image_size, image_size)
        channels = len(mode)
        standardise = StandardiseChannels(
            [255 * value for value in per_channel("data.mean", mean, channels)],
            [255 * value for value in per_channel("data.std", std, channels)],
        )
        if min(standardise.std) <= 0:
            raise ConfigError(f"data.std: {std!r} has a value that is not above 0.")
        return Images(mode, size, image_size is not None), (channels, size[1], size[0]), standardise
    try:
        row = np.asarray(dataset.with_format("numpy")[0][column], np.float32)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"data.input: column {column!r} holds {feature}, neither images nor numbers; the columns are: "
            f"{', '.join(dataset.column_names)}."
        ) from error
    shape = row.shape or (1,)
    return Numbers(shape), shape, None


def per_channel(setting: str, given: Any, channels: int) -> list[float]:
    """A number for each channel, from one for all or from a list.

    Raises:
        ConfigError: It is neither.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * channels
    if len(values) != channels or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"{setting}: {given!r} is neither one number nor one for each of {channels} channels.")
    return values
