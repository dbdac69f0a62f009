"""A dataset in Hugging Face's format on this machine: images, numbers or texts in columns, the target in another."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.data.arguments import check_flag, check_seed, check_unused
from launcher.data.columns import Inputs, Look, kind_of, read_inputs
from launcher.data.masks import count_classes, holds_masks, with_masks
from launcher.data.source import Data
from launcher.data.splitting import split_off
from launcher.data.table_statistics import TASKS, check_task, standardise, target_statistics
from launcher.data.targets import read_targets
from launcher.data.text_columns import Vocabulary
from launcher.data.token_rows import MULTIPLE

FILES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
PACKED = (".gz", ".bz2", ".xz", ".zst")  # which may come behind these
PARTS = ("train", "validation", "test")
NAMES = {"train": ["train"], "validation": ["validation", "valid", "val", "dev"], "test": ["test"]}


def load(
    path: str,
    name: str | None,
    download: bool,
    splits: Mapping[str, str | None],
    input: str | Sequence[str],
    target: str | Sequence[str],
    task: str,
    image_size: int | None,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    validation: float,
    test: float,
    split_seed: int,
    channels: int | None,
    bits: int | None,
    tokenizer: str | None,
    max_tokens: int,
    cache: str | None,
    classes: int | None,
) -> Data:
    """Open a dataset, choose columns of it and split it; the settings are those of conf/data/huggingface.yaml.

    Images are decoded by the workers, as bytes, and standardised a batch at a time. Numbers, and the target of a
    regression, are standardised by the training split, as those of data=csv. Texts become tokens, and a batch of them
    is padded. `task=auto` takes images for masks, vectors for labels where they hold nothing but 0 and 1 and else for
    numbers, numbers as data=csv takes them, and all else for classes.

    Raises:
        ConfigError: The dataset, a split, a column or a value is missing or unfit, a setting is outside its range, or
            a package is missing.
    """
    check_task(task, (*TASKS, "multilabel", "segmentation"))
    look_at = Look(image_size, mean, std, channels, bits)
    check_seed("data.split_seed", split_seed)
    vocabulary = Vocabulary(tokenizer, max_tokens, cache)
    found = choose(read(path, name, check_flag("data.download", download)), splits, path)
    names, wanted = (
        _columns(setting, given, found, path) for setting, given in (("data.input", input), ("data.target", target))
    )
    if both := sorted({*names} & {*wanted}):
        raise ConfigError(f"data.input, data.target: both name {both[0]!r}; what is to be predicted is no input.")
    images = [*names, *(wanted if task in ("auto", "segmentation") else [])]
    found = {split: _with_images(dataset, images) for split, dataset in found.items()}
    values, task, classes_named, count, notes = _targets(found, wanted, task, classes)
    found, values = _split(found, values, classes_named, {"test": test, "validation": validation}, split_seed, path)
    inputs = read_inputs(found, names, look_at, vocabulary)
    if inputs.mean is not None or inputs.vocabulary is not None:
        unused = {"image_size": image_size, "channels": channels, "bits": bits}
        check_unused(unused, f"{', '.join(names)} holds no images")
    if inputs.vocabulary is None:
        check_unused({"tokenizer": tokenizer}, f"{', '.join(names)} holds no text")
    target_mean = target_std = None
    if task == "regression":
        centre, spread = target_statistics(values["train"])
        values = {split: standardise(rows, centre, spread) for split, rows in values.items()}
        target_mean, target_std = torch.from_numpy(centre), torch.from_numpy(spread)
    parts = [inputs.split(split, torch.from_numpy(values[split])) for split in PARTS]
    if task == "segmentation":
        columns = names[0], wanted[0]
        parts = [with_masks(part, found[split], columns, count) for split, part in zip(PARTS, parts, strict=True)]
    train, validated, tested = parts
    reader = _reader(found, names, wanted, vocabulary, task)
    return Data(
        name="huggingface",
        task=task,
        input_shape=inputs.shape,
        num_outputs=count,
        train=train,
        validation=validated,
        test=tested,
        class_names=classes_named,
        target_mean=target_mean,
        target_std=target_std,
        input_mean=inputs.mean,
        input_std=inputs.std,
        notes=notes + inputs.notes,
        vocabulary=inputs.vocabulary,
        longest=_longest(inputs, max_tokens, reader is not None),
        reader=reader,
    )


def _longest(inputs: Inputs, max_tokens: int, is_text: bool) -> int | None:
    """Tokens of a padded sample at most: of a text as many as it may have, since new ones may be longer."""
    most = max_tokens if is_text else inputs.shape[0]
    return None if inputs.vocabulary is None else -(-most // MULTIPLE) * MULTIPLE


def _reader(
    sets: Mapping[str, Any], names: list[str], wanted: list[str], vocabulary: Vocabulary, task: str
) -> dict[str, Any] | None:
    """How other texts are read like these; None where the input is no text. See launcher/data/other_texts.py."""
    if kind_of(sets, names[0]) != "text":
        return None
    return {
        "_target_": "launcher.data.other_texts.read_alike",
        "column": names[0],
        "target": wanted,
        "task": task,
        "tokenizer": None if vocabulary.file is None else str(Path(vocabulary.file).expanduser().absolute()),
        "digest": vocabulary.digest,
        "max_tokens": vocabulary.most,
    }


def _targets(
    sets: Mapping[str, Any], wanted: list[str], task: str, classes: int | None
) -> tuple[dict[str, np.ndarray], str, list[str] | None, int, list[str]]:
    """What `read_targets` gives, and before its last the number of outputs; of masks no targets, which are read later.

    Args:
        sets: Split to its rows.
        wanted: Columns.
        task: As asked for.
        classes: Of masks, as asked for.
    """
    if holds_masks(sets, wanted, task):
        count, notes = count_classes(sets, wanted[0], classes)
        return {}, "segmentation", None, count, notes
    check_unused({"classes": classes}, f"{', '.join(wanted)} holds no masks, whose classes it is the number of")
    values, task, names, notes = read_targets(sets, wanted, task)
    return values, task, names, values["train"].shape[1] if names is None else len(names), notes


def _split(
    sets: Mapping[str, Any],
    values: Mapping[str, np.ndarray],
    classes: list[str] | None,
    shares: Mapping[str, float],
    seed: int,
    path: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Rows and targets of the three splits, of which those that are not there are split off training.

    Args:
        sets: Split to its rows.
        values: Split to the targets of its rows, [n, ...]; empty where they are read later.
        classes: Names of the classes that the targets are; each is cut alike. None: they are none.
        shares: Split to its share.
        seed: Of the choice.
        path: Of the dataset, for messages.
    """
    rows = dict(sets)
    targets = {split: values.get(split, np.zeros(len(dataset))) for split, dataset in rows.items()}
    for split, share in shares.items():
        if split not in rows:
            labels = None if classes is None else torch.from_numpy(targets["train"])
            count = len(rows["train"])
            kept, out = split_off(split, count, share, seed, labels, f"{count} rows of {path}")
            for name_of, index in ((split, out.numpy()), ("train", kept.numpy())):
                rows[name_of], targets[name_of] = rows["train"].select(index), targets["train"][index]
    return rows, targets


def _columns(setting: str, given: Any, sets: Mapping[str, Any], path: str) -> list[str]:
    """The columns that a setting names, one or several."""
    names: list[Any] = [given] if given is None or isinstance(given, str) else list(given)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{setting}: {names} names no column, or one twice; name one, or a list.")
    for name in names:
        for dataset in sets.values():
            if name not in dataset.column_names:
                columns = ", ".join(dataset.column_names)
                raise ConfigError(f"{setting}: {path} has no column {name!r}; it has: {columns}.")
    return names


def _with_images(dataset: Any, names: list[str]) -> Any:
    """The dataset, with columns of the bytes of image files as the images in them."""
    for name in names:
        held = str(dataset.features.arrow_schema.field(name).type)
        file = held in ("binary", "large_binary") or re.fullmatch(r"struct<bytes: binary, path: string>", held)
        if file and type(dataset.features[name]).__name__ != "Image":
            library = import_extra("datasets", "data=huggingface reads with the package datasets", "hf")
            dataset = dataset.cast_column(name, library.Image())
    return dataset


def read(path: Any, name: str | None, download: bool, setting: str = "data.path") -> dict[str, Any]:
    """The splits of a dataset by name, mapped into memory; `setting` is what named it, for messages."""
    if not path or not isinstance(path, str):
        raise ConfigError(
            f"{setting}: {path!r} is no dataset; name a directory of save_to_disk, a parquet, csv or json file, or a "
            "dataset in the cache."
        )
    if not download:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # the library looks at it when it is imported
    datasets = import_extra("datasets", "data=huggingface reads with the package datasets", "hf")
    datasets.disable_progress_bars()
    place = Path(path).expanduser()
    kind = Path(place.stem).suffix if place.suffix in PACKED else place.suffix
    if place.is_file() and kind not in FILES:
        raise ConfigError(f"{setting}: {path} is none of the files that can be read: {', '.join(FILES)}.")
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = datasets.load_from_disk(str(place))
        elif place.is_file():
            more = {"sep": "\t"} if kind == ".tsv" else {}
            found = datasets.load_dataset(FILES[kind], data_files=str(place), **more)
        else:
            found = datasets.load_dataset(str(place) if place.is_dir() else path, name)
    except Exception as error:  # the library raises whatever its parts do
        cause = " ".join(str(error.__cause__ or error).split())
        hint = "" if place.exists() or download else " data.download=true fetches a dataset that is not here."
        raise ConfigError(f"{setting}: cannot read {path}: {cause}.{hint}") from error
    # Without the format that it may have been saved with, which hides columns and changes types.
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    return {split: dataset.with_format(None) for split, dataset in splits.items()}


def choose(sets: Mapping[str, Any], splits: Any, path: str) -> dict[str, Any]:
    """The splits that become `train`, `validation` and `test`; the latter two only where they are there and free."""
    known = ", ".join(sets)
    if not isinstance(splits, Mapping) or set(splits) != set(NAMES):
        raise ConfigError(f"data.splits: {splits!r} must name a split, or null, for each of {', '.join(NAMES)}.")
    found: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for split, wanted in splits.items():
        if wanted is None:
            continue
        if wanted not in sets:
            raise ConfigError(f"data.splits.{split}: {path} has no split {wanted!r}; it has: {known}.")
        if wanted in taken:
            raise ConfigError(
                f"data.splits.{split}: {wanted!r} is what {taken[wanted]} takes; null splits off a share."
            )
        taken[wanted] = split
    for split, wanted in splits.items():
        chosen = wanted or next((name for name in NAMES[split] if name in sets and name not in taken), None)
        if chosen is not None:
            found[split] = sets[chosen]
            if len(found[split]) == 0:
                raise ConfigError(f"data.splits.{split}: the split {chosen!r} of {path} has no rows.")
    if "train" not in found:
        raise ConfigError(f"data.splits.train: {path} has no split called train; name one of: {known}.")
    return found
