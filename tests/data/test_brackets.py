"""Words of brackets: half of them balanced, by a rule of another kind than the one that makes them."""

import re

import numpy as np
import pytest
import torch
from data_sources import load

from launcher.core.errors import ConfigError


def reduced(word, kinds):
    """What is left of a word when pairs of neighbours that open and close are taken out as long as there are any."""
    text = "".join(map(chr, word))
    pairs = re.compile("|".join(re.escape(chr(k) + chr(kinds + k)) for k in range(1, kinds + 1)))
    while (less := pairs.sub("", text)) != text:
        text = less
    return text


@pytest.mark.parametrize(("kinds", "longest"), [(1, 10), (2, 40), (3, 7), (1, 4)])
def test_a_word_is_balanced_as_its_label_says(kinds, longest):
    data = load("brackets", samples=300, kinds=kinds, longest=longest)
    seen, lengths = [], set()
    for split in data.splits().values():
        for i in range(len(split)):
            inputs, label = split.dataset[i]
            word = inputs["input_ids"].tolist()
            assert (reduced(word, kinds) == "") == bool(label) and 4 <= len(word) <= longest
            assert min(word) >= 1 and max(word) < data.vocabulary and len(word) == split.lengths[i]
            opened = np.bincount(word, minlength=2 * kinds + 1)[1:].reshape(2, kinds)
            assert (opened[0] == opened[1]).all(), "the number of each bracket tells nothing"
            seen.append(int(label))
            lengths.add(len(word))
    assert len(seen) == 300 and sum(seen) == 150 and (longest < 8 or len(lengths) > 3)
    again = load("brackets", samples=300, kinds=kinds, longest=longest)
    assert torch.equal(again.train.dataset[5][0]["input_ids"], data.train.dataset[5][0]["input_ids"])


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"kinds": 1.5}, {"longest": 3}, {"kinds": 101}, {"samples": 2}])
def test_what_is_wrong_is_one_sentence(wrong):
    with pytest.raises(ConfigError, match="data"):
        load("brackets", **wrong)
