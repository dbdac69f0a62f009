"""Sequences of brackets that are balanced or not, made by numbers: a small text to classify, of different lengths."""

import numpy as np
import torch

from launcher.core.errors import ConfigError
from launcher.data.arguments import check_seed, check_whole
from launcher.data.source import Data
from launcher.data.splitting import split_three
from launcher.data.token_rows import token_split

CLASSES = ["open", "balanced"]
TRIES = 20  # swaps of two brackets that are tried until a word is no longer balanced


def load(samples: int, kinds: int, longest: int, test: float, validation: float, split_seed: int) -> Data:
    """Make words of `kinds` kinds of brackets, half of which are balanced (the Dyck language of that many kinds).

    The other half are such words with two brackets swapped, so that the number of each tells nothing. Tokens
    1 .. kinds open, kinds + 1 .. 2 kinds close in the same order, and 0 fills a batch up. The settings are those of
    conf/data/brackets.yaml.
    """
    check_whole("data.samples", samples, "number of words; it must be an integer >= 1, such as 4000")
    check_whole("data.kinds", kinds, "number of kinds of brackets; it must be an integer >= 1, such as 2")
    check_whole("data.longest", longest, "number of brackets of the longest word; it must be an integer >= 4")
    if longest < 4 or kinds > 100:
        raise ConfigError(
            f"data.longest={longest}, data.kinds={kinds}: take at least 4 brackets, of at most 100 kinds."
        )
    random = np.random.RandomState(check_seed("data.split_seed", split_seed))
    words, labels = [], np.arange(samples) % 2
    for label in labels:
        word = balanced(random, kinds, 2 * random.randint(2, longest // 2 + 1))
        words.append(word if label else swapped(random, kinds, word))
    targets = torch.from_numpy(labels.astype(np.int64))
    tokens, offsets = np.concatenate(words), np.cumsum([0, *map(len, words)])
    train, validated, tested = (
        token_split({"input_ids": tokens}, offsets, targets, rows)
        for rows in split_three(samples, test, validation, split_seed, targets)
    )
    return Data(
        name="brackets",
        task="classification",
        input_shape=(longest,),
        num_outputs=2,
        train=train,
        validation=validated,
        test=tested,
        class_names=CLASSES,
        vocabulary=2 * kinds + 1,
    )


def balanced(random: np.random.RandomState, kinds: int, length: int) -> np.ndarray:
    """A balanced word [length] uint8, of an even length; each bracket opens or closes with even odds where both may."""
    still_open: list[int] = []
    word = np.empty(length, np.uint8)
    for i in range(length):
        if not still_open or (len(still_open) < length - i and random.randint(2)):
            word[i] = 1 + random.randint(kinds)
            still_open.append(int(word[i]))
        else:
            word[i] = kinds + still_open.pop()
    return word


def swapped(random: np.random.RandomState, kinds: int, word: np.ndarray) -> np.ndarray:
    """The word with two of its brackets swapped, so that it is no longer balanced."""
    for _ in range(TRIES):
        one, other = random.randint(len(word), size=2)
        found = word.copy()
        found[[one, other]] = word[[other, one]]
        if not is_balanced(found, kinds):
            return found
    return np.roll(word, 1)  # begins with what closes


def is_balanced(word: np.ndarray, kinds: int) -> bool:
    """Whether each bracket closes the last one that is open, and none stays open."""
    still_open: list[int] = []
    for bracket in word.tolist():
        if bracket <= kinds:
            still_open.append(bracket)
        elif not still_open or still_open.pop() != bracket - kinds:
            return False
    return not still_open
