"""Tokens in shards that are mapped into memory, of any number and size: nothing is read at the start but headers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.arguments import check_fraction, check_whole
from launcher.data.shard_files import OpenShards, Shard, checksum, find_shards, unknown
from launcher.data.source import Data
from launcher.data.text import open_tokenizer


def load(
    path: str,
    dtype: str | None,
    block: int,
    vocabulary: int | None,
    tokenizer: str | None,
    open: int,
    validation: float,
    test: float,
    end_of_text: int | None = None,
) -> Data:
    """Cut each shard into samples of `block` tokens, each with the token that follows as its target.

    Sample i of a shard is its tokens [i * block, (i + 1) * block); what is left at its end is not used. Shards are of
    the split that their names begin a word with (train, val, test), or else of the training split, from whose end a
    split without a shard is cut off. The settings are those of conf/data/shards.yaml.

    Raises:
        ConfigError: There is no shard, one is of no format that is known, or a setting is outside its range.
    """
    check_whole("data.block", block, "number of tokens; it must be an integer >= 1, such as 1024")
    check_whole("data.open", open, "number of shards; it must be an integer >= 1, such as 16")
    shards = find_shards(path, dtype)
    known, notes = _vocabulary(vocabulary, tokenizer, shards)
    if end_of_text is not None and (type(end_of_text) is not int or not 0 <= end_of_text < known):
        raise ConfigError(
            f"data.end_of_text: {end_of_text!r} is no token; it must be an integer in 0..{known - 1}, or null."
        )
    sets, told = _sets(shards, block)
    parts = _cut(sets, block, {"test": test, "validation": validation})
    if len(sets["train"]) > open:
        told.append(
            f"{len(sets['train']):,} shards, of which at most data.open={open} are mapped at once: sampling=blocked "
            "goes through them in groups of so many"
        )

    def split(name: str) -> DatasetSplit:
        of, first, last = parts[name]
        dataset = TokenBlocks(sets[of], block, known, open, (first, last))
        return DatasetSplit(
            dataset, batched=True, checksum=checksum(sets[of], known), shards=dataset.shard_sizes(), open_shards=open
        )

    return Data(
        name="shards",
        task="language",
        input_shape=(block,),
        num_outputs=known,
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        notes=[*notes, *told],
        end_of_text=end_of_text,
    )


def _vocabulary(vocabulary: Any, tokenizer: str | None, shards: Sequence[Shard]) -> tuple[int, list[str]]:
    """Size of the vocabulary: as it is given, that of the tokenizer, or as the format says; lines for the log."""
    if vocabulary is not None:
        return check_whole("data.vocabulary", vocabulary, "size of a vocabulary, such as 50257"), []
    if tokenizer is not None:
        return open_tokenizer(tokenizer).size, []
    said = {shard.vocabulary for shard in shards}
    if len(said) == 1 and (known := said.pop()) is not None:
        return known, [f"a vocabulary of {known} tokens, as of llm.c's headers (data.vocabulary says otherwise)"]
    raise ConfigError(
        "data.vocabulary: shards do not tell how many tokens there are; set it, as in data.vocabulary=50257, or name "
        "the tokenizer.json in data.tokenizer."
    )


def _sets(shards: Sequence[Shard], block: int) -> tuple[dict[str, list[Shard]], list[str]]:
    """The shards of each split that has some, and lines about those that are left aside."""
    notes, sets = [], dict[str, list[Shard]]()
    short = [shard.name for shard in shards if shard.length <= block]
    if short:
        notes.append(f"left aside, as shorter than a sample of data.block={block} tokens and one: {_some(short)}")
    named = {shard.split for shard in shards}
    unnamed = [shard.name for shard in shards if shard.split is None]
    if unnamed and "train" in named:
        notes.append(f"left aside, as others are named train: {_some(unnamed)}")
    for shard in shards:
        split = shard.split or ("train" if "train" not in named else None)
        if split is not None and shard.length > block:
            sets.setdefault(split, []).append(shard)
    if "train" not in sets:
        raise ConfigError(
            f"data.path: no shard to train on has more than data.block={block} tokens; the shards are: "
            f"{_some([f'{one.name} ({one.length})' for one in shards])}."
        )
    return sets, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _cut(sets: dict[str, list[Shard]], block: int, shares: dict[str, float]) -> dict[str, tuple[str, int, int | None]]:
    """Of each split whose shards it has, and its first and last sample among those."""
    last = sum((shard.length - 1) // block for shard in sets["train"])
    parts: dict[str, tuple[str, int, int | None]] = {}
    for place, (split, share) in enumerate(shares.items()):
        if split in sets:
            parts[split] = (split, 0, None)
            continue
        check_fraction(f"data.{split}", share)
        needed = 1 + sum(other not in sets for other in list(shares)[place:])  # one each, and one to train on
        if last < needed:
            raise ConfigError(
                f"data.path: {last} samples of data.block={block} tokens leave none for the split {split}; take more "
                "tokens or a smaller block."
            )
        first = last - min(max(1, round(last * share)), last - needed + 1)
        parts[split], last = ("train", first, last), first
    return {**parts, "train": ("train", 0, last)}


class TokenBlocks(Dataset):
    """Samples of `block` tokens in shards, and the tokens one further.

    Args:
        shards: Each has more than `block` tokens.
        block: Tokens of a sample.
        vocabulary: Number of tokens that there are.
        most: Shards that are mapped at once.
        part: The first sample that counts, and the last (exclusive); None: all to the end.
    """

    def __init__(
        self, shards: Sequence[Shard], block: int, vocabulary: int, most: int, part: tuple[int, int | None]
    ) -> None:
        self.shards, self.block, self.vocabulary = shards, block, vocabulary
        self.opened = OpenShards(shards, most)
        self._ends = np.cumsum([(shard.length - 1) // block for shard in shards])
        self.first, self.last = part[0], int(self._ends[-1]) if part[1] is None else part[1]

    def __len__(self) -> int:
        return self.last - self.first

    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard that count, in the order of the samples."""
        ends = np.clip(self._ends, self.first, self.last)
        return tuple(np.diff(ends, prepend=self.first).tolist())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Samples by their numbers: inputs and targets [block] int32.

        Raises:
            BrokenFile: A shard is gone, or has a token that is none of the vocabulary.
        """
        samples = np.asarray(indices) + self.first
        places = np.searchsorted(self._ends, samples, side="right")
        found = np.empty((len(samples), self.block + 1), np.int32)
        for row in np.argsort(places, kind="stable"):  # shard by shard, so that each is mapped once
            place = int(places[row])
            before = int(self._ends[place - 1]) if place else 0
            first = (int(samples[row]) - before) * self.block
            tokens = self.opened[place][first : first + self.block + 1]
            if fault := unknown(tokens, self.vocabulary, self.shards[place]):
                raise BrokenFile(fault)
            found[row] = tokens
        rows = torch.from_numpy(found)
        return list(zip(rows[:, :-1], rows[:, 1:], strict=True))
