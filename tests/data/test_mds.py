"""Training from MosaicML Streaming's directories, beside the rows that were written."""

import numpy as np
import pytest
import torch
from mds_written import png, tiny, write
from options import option
from processes import summary, train

from launcher.batching.sampling import Blocked
from launcher.batching.stream import in_order
from launcher.config.components import build
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data import Data

CPU = torch.device("cpu")


def load(path, **changes) -> Data:
    return build("data", option("data", "mds") | {"path": str(path)} | changes)


def every(part):
    """All inputs and targets of a split, in order."""
    inputs, targets = zip(*in_order(part, 0, 1, 7, CPU, 0), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def tokens(place, per_shard=4):
    """Rows of 9 tokens in three splits."""
    numbers = np.random.RandomState(0).randint(0, 50, (31, 9))
    cuts = {"train": numbers[:20], "validation": numbers[20:26], "test": numbers[26:]}
    for split, rows in cuts.items():
        write(place / split, {"t": "bytes"}, [{"t": row.astype(np.int64).tobytes()} for row in rows], per_shard)
    return cuts


WORDS = {"input": "t", "dtype": "int64", "vocabulary": 50}


def test_rows_of_tokens_are_samples(tmp_path):
    cuts = tokens(tmp_path / "t")
    data = load(tmp_path / "t", **WORDS, open=2)
    assert (data.task, data.input_shape, data.num_outputs, data.train.shards) == ("language", (8,), 50, (4,) * 5)
    for split, rows in cuts.items():
        inputs, targets = every(data.splits()[split])
        assert np.array_equal(inputs, rows[:, :-1]) and np.array_equal(targets, rows[:, 1:])
    assert len(data.train.dataset.opened) == 2
    order = Blocked(data, 0).samples_at(0, np.arange(20))
    assert sorted(order.tolist()) == list(range(20))
    assert len({row // 4 for row in order[:8].tolist()}) == 2  # in whichever order, two shards and all of them


def images(place, n=40, split=True):
    """Images of 9 x 7 pixels and their classes; and what was written."""
    random = np.random.RandomState(1)
    pixels, labels = random.randint(0, 256, (n, 9, 7, 3)).astype(np.uint8), np.arange(n) % 4
    rows = [
        {"label": np.int64(label).tobytes(), "about": b"x" * label, "image": png(one)}
        for one, label in zip(pixels, labels, strict=True)
    ]
    write(place, {"label": "int", "image": "png", "about": "str"}, rows, 7)
    return {one.tobytes(): label for one, label in zip(pixels, labels.tolist(), strict=True)}


@pytest.mark.parametrize("classes", [None, 4])
def test_images_have_their_classes(classes, tmp_path):
    pytest.importorskip("PIL")
    written = images(tmp_path / "t")
    data = load(
        tmp_path / "t", input="image", target="label", classes=classes, validation=0.2, test=0.2, mean=0.0, std=1.0
    )
    assert (data.task, data.input_shape, data.num_outputs) == ("classification", (3, 9, 7), 4)
    seen = {}
    for split in data.splits().values():
        inputs, targets = every(split)
        raw = (255 * inputs).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        seen |= {one.tobytes(): label for one, label in zip(raw, targets.tolist(), strict=True)}
        if classes is None:
            assert split.targets.tolist() == targets.tolist() and set(targets.tolist()) == {0, 1, 2, 3}
        else:
            assert split.targets is None
    assert seen == written
    assert sum(data.train.shards) == len(data.train) and len(data.train.shards) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "x"}, ["data.input", "'x'", "about, image, label"]),
        ({"input": None}, ["data.input", "None", "about, image, label"]),
        ({"target": "x"}, ["data.target", "'x'", "about, image, label"]),
        ({"target": "about"}, ["data.target", "'about' is str", "uint8"]),
        ({"input": "about"}, ["data.input", "str", "jpeg"]),
        ({"target": None}, ["data.target", "png", "tokens"]),
        ({"classes": 0}, ["data.classes", "0"]),
        ({"open": 0}, ["data.open", "0"]),
        ({"image_size": 0}, ["data.image_size", "0"]),
        ({"channels": 2}, ["data.channels", "2"]),
        ({"std": 0.0}, ["data.std", "0.0"]),
        ({"dtype": "int64"}, ["data.dtype=int64", "rows are images"]),
        ({"validation": 0.0}, ["data.validation", "(0, 1)"]),
    ],
)
def test_wrong_input_is_named(changes, words, tmp_path):
    pytest.importorskip("PIL")
    images(tmp_path / "t")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "t", **({"input": "image", "target": "label"} | changes))
    assert all(word in str(caught.value) for word in words), caught.value


def test_wrong_tokens_are_named(tmp_path):
    tokens(tmp_path / "t")
    for changes, words in [
        ({"dtype": None}, "data.dtype: None is none of uint8"),
        ({"vocabulary": None}, "data.vocabulary: set the number"),
        ({"vocabulary": 3}, r"data.vocabulary: row 0 of .*/t/t.* has the token \d+, which is none of 0..2"),
        ({"dtype": "uint8"}, "data.vocabulary"),
        ({"classes": 4}, "data.classes=4: without data.target the rows are tokens"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / "t", **(WORDS | {"vocabulary": 5} | changes))
    tiny(tmp_path / "tiny")
    data = load(tmp_path / "tiny", input="tokens", vocabulary=20, validation=0.3, test=0.3)
    assert [len(split) for split in data.splits().values()] == [2, 1, 1]
    assert {tuple(row) for split in data.splits().values() for row in every(split)[1].tolist()} == {
        tuple(range(first, first + 4)) for first in (1, 6, 11, 16)
    }


def test_a_row_that_does_not_fit_is_found_when_its_turn_comes(tmp_path):
    rows = [{"t": np.arange(length, dtype=np.int64).tobytes()} for length in (5, 5, 4, 5)]
    write(tmp_path / "t", {"t": "bytes"}, rows, 2)
    data = load(tmp_path / "t", **WORDS, validation=0.3, test=0.3)
    rows = data.train.dataset.dataset.dataset
    with pytest.raises(BrokenFile, match=r"data\.input: row 2 of .*t has 4 tokens, and the first one 5"):
        rows[2]
    pytest.importorskip("PIL")
    write(tmp_path / "i", {"i": "jpeg", "c": "uint8"}, [{"i": b"no image", "c": b"\1"}] * 9, 9)
    with pytest.raises(ConfigError, match=r"data\.input: row 0 of .*i is no image that can be read"):
        load(tmp_path / "i", input="i", target="c")


@pytest.mark.soak
def test_a_run_trains_on_images_and_tells_other_rows_apart(tmp_path):
    images(tmp_path / "t")
    words = ["data=mds", "data.path=t", "data.input=image", "data.target=label", "model=cnn", "sampling=blocked",
             "batch.global_size=8", "epochs=2", "threads=1", "num_workers=0", "hydra.run.dir=run"]  # fmt: skip
    train(words, tmp_path, 2).ok()
    assert summary(tmp_path / "run")["status"] == "finished"
