"""Tokens in shards: samples, splits and a start, beside the arrays that were written."""

import json
import os
import time

import numpy as np
import pytest
import torch
from options import option
from processes import rows, train

from launcher.batching.plan import plan_batch
from launcher.batching.sampling import Blocked
from launcher.batching.stream import Stream, in_order
from launcher.config.components import build
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data import Data

CPU = torch.device("cpu")
SMALL = ["model=transformer", "model.width=16", "model.layers=1", "model.heads=2"]


def load(path, **changes) -> Data:
    settings = {"path": str(path), "dtype": "uint16", "vocabulary": 300, "block": 8} | changes
    return build("data", option("data", "shards") | settings)


def write(place, lengths, seed=0):
    """Shards of so many tokens, by name."""
    place.mkdir(exist_ok=True)
    random = np.random.RandomState(seed)
    tokens = {name: random.randint(0, 300, length).astype(np.uint16) for name, length in lengths.items()}
    for name, array in tokens.items():
        (place / name).parent.mkdir(exist_ok=True)
        array.tofile(place / name)
    return tokens


def every(part):
    """All inputs and targets of a split, in order."""
    inputs, targets = zip(*in_order(part, 0, 1, 7, CPU, 0), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def samples_of(tokens, block=8):
    """Inputs and targets of every sample of shards, in order of their names."""
    cut = [tokens[name] for name in sorted(tokens)]
    starts = [(one, i * block) for one in cut for i in range((len(one) - 1) // block)]
    return [one[i : i + block].tolist() for one, i in starts], [
        one[i + 1 : i + block + 1].tolist() for one, i in starts
    ]


def test_samples_of_each_split_are_those_of_its_files(tmp_path):
    lengths = {
        "train_0.bin": 100,
        "train_1.bin": 8,
        "train_2.bin": 81,
        "val/0.bin": 41,
        "test.bin": 26,
        "other.bin": 99,
    }
    tokens = write(tmp_path / "t", lengths)
    data = load(tmp_path / "t")
    assert (data.task, data.input_shape, data.num_outputs) == ("language", (8,), 300)
    named = {"train": ("train_0.bin", "train_2.bin"), "validation": ("val/0.bin",), "test": ("test.bin",)}
    for name, split in data.splits().items():
        inputs, targets = every(split)
        expected = samples_of({file: tokens[file] for file in named[name]})
        assert inputs.dtype == torch.int64 and (inputs.tolist(), targets.tolist()) == expected
    assert "train_1.bin" in data.notes[0] and "other.bin" in data.notes[1] and len(data.notes) == 2
    assert data.train.shards == (12, 10)


def test_splits_without_a_file_are_cut_off_the_end(tmp_path):
    tokens = write(tmp_path / "t", {f"{i}.bin": 80 + i for i in range(10)})
    data = load(tmp_path / "t", validation=0.2, test=0.1, open=3)
    found = [every(split) for split in data.splits().values()]
    assert [len(inputs) for inputs, _ in found] == [72, 18, 10]
    inputs, targets = samples_of(tokens)
    assert torch.cat([one for one, _ in found]).tolist() == inputs
    assert torch.cat([one for _, one in found]).tolist() == targets
    assert data.train.shards == (9, 10, 10, 10, 10, 10, 10, 3, 0, 0)
    assert "10 shards, of which at most data.open=3" in data.notes[0]


def test_blocked_batches_are_the_same_on_any_ranks_from_any_step_with_few_shards_open(tmp_path):
    tokens = write(
        tmp_path / "t", {f"train_{i:02d}.bin": 60 + 9 * i for i in range(12)} | {"val.bin": 50, "test.bin": 50}
    )
    inputs, _ = samples_of({name: array for name, array in tokens.items() if "train" in name})
    data = load(tmp_path / "t", open=2)
    n = len(data.train)

    def batches(world, first, last):
        plan = plan_batch(n, 10, world, 3)
        streams = [
            Stream(data.train, plan, 5, rank, CPU, 0, sampler=Blocked(data, 5)).batches(first, last)
            for rank in range(world)
        ]
        return [
            [row for one in together for m in one.micros for row in m.inputs[: m.size].tolist()]
            for together in zip(*streams, strict=True)
        ]

    steps = -(-n // 10)
    alone = batches(1, 0, 2 * steps)
    assert len(data.train.dataset.opened) <= 2
    for world in (2, 3):
        assert batches(world, 0, 2 * steps) == alone
    assert batches(3, steps + 3, 2 * steps) == alone[steps + 3 :]
    for epoch in (alone[:steps], alone[steps:]):
        assert sorted(row for batch in epoch for row in batch) == sorted(inputs)
    assert alone[:steps] != alone[steps:]


@pytest.mark.parametrize(
    ("lengths", "changes", "words"),
    [
        ({"a.bin": 8}, {}, ["data.path", "more than data.block=8", "a.bin (8)"]),
        ({"a.bin": 17}, {}, ["data.path", "2 samples", "split test"]),
        ({"val.bin": 99}, {}, ["data.path", "no shard to train on"]),
        ({"a.bin": 99}, {"vocabulary": None}, ["data.vocabulary", "50257", "data.tokenizer"]),
        ({"a.bin": 99}, {"vocabulary": 10}, ["data.vocabulary", "a.bin has the token", "0..9"]),
        ({"a.bin": 99}, {"vocabulary": 0}, ["data.vocabulary", "0"]),
        ({"a.bin": 99}, {"open": 0}, ["data.open", "0"]),
        ({"a.bin": 99}, {"block": 0}, ["data.block", "0"]),
        ({"a.bin": 99}, {"test": 1.0}, ["data.test", "(0, 1)"]),
        ({"a.bin": 99}, {"tokenizer": "none.json", "vocabulary": None}, ["data.tokenizer", "none.json"]),
    ],
)
def test_wrong_input_is_named(lengths, changes, words, tmp_path):
    write(tmp_path / "t", lengths)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "t", **changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_token_that_is_none_is_found_when_its_turn_comes(tmp_path):
    (tokens,) = write(tmp_path / "t", {"a.bin": 100_000}).values()
    tokens[5003] = 300  # where the checksum does not look
    tokens.tofile(tmp_path / "t/a.bin")
    data = load(tmp_path / "t")
    assert data.train.dataset[0][0].tolist() == tokens[:8].tolist()
    with pytest.raises(BrokenFile, match=r"data\.vocabulary: .*a\.bin has the token 300, which is none of 0\.\.299"):
        data.train.dataset[5003 // 8]


def test_the_record_tells_other_shards_apart(tmp_path):
    def parts(place):
        return load(tmp_path / place).record()["parts"]

    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / place, {"0.bin": 9000, "1.bin": 9000}, seed)
    assert parts("a") == parts("b") != parts("c")
    assert json.dumps(parts("a"))
    os.rename(tmp_path / "b/0.bin", tmp_path / "b/2.bin")
    assert parts("a") != parts("b")


def test_a_few_samples_of_many_are_taken_at_once(tmp_path):
    write(tmp_path / "t", {f"{i}.bin": 81 for i in range(30)})
    data = load(tmp_path / "t", open=2)
    shards = data.train.shards
    data.limit(20)
    assert len(data.train) == 20 and sum(data.train.shards) == 20 and len(data.train.shards) == len(shards)
    seen = Blocked(data, 0).samples_at(0, np.arange(20))
    assert sorted(seen.tolist()) == list(range(20))


def sparse(place, files, size):
    place.mkdir()
    for i in range(files):
        with (place / f"train_{i:04d}.bin").open("wb") as file:
            file.truncate(size)
    for name in ("val.bin", "test.bin"):
        np.zeros(2000, np.uint16).tofile(place / name)


@pytest.mark.parametrize(("files", "size"), [(1000, 100 << 20), (1, 100 << 30)])
def test_a_hundred_gigabytes_are_not_read(files, size, tmp_path):
    sparse(tmp_path / "t", files, size)
    started = time.perf_counter()
    data = load(tmp_path / "t", block=1024)
    order = Blocked(data, 0)
    stream = Stream(data.train, plan_batch(len(data.train), 16, 1, None), 0, 0, CPU, 0, sampler=order)
    far = stream.plan.steps_per_epoch * 3 - 5
    for batch in stream.batches(far, far + 10):
        assert batch.micros[0].inputs.shape[1] == 1024 and not batch.micros[0].inputs.any()
    data.limit(100)
    assert len(data.train) == 100
    assert time.perf_counter() - started < 3


@pytest.mark.soak
def test_a_run_on_a_hundred_gigabytes_starts_and_resumes(tmp_path):
    sparse(tmp_path / "t", 1000, 100 << 20)
    words = ["data=shards", "data.path=t", "data.dtype=uint16", "data.vocabulary=300", "data.block=16", *SMALL,
             "sampling=blocked", "batch.global_size=4", "log_every=1", "threads=1", "scheduler=constant",
             "hydra.run.dir=run"]  # fmt: skip
    started = time.perf_counter()
    train([*words, "max_steps=1"], tmp_path, name="io0").ok()
    print(f"a run of one step on 100 GB: {time.perf_counter() - started:.1f} s")
    train([*words, "max_steps=4"], tmp_path, 2, name="io1").ok()
    assert [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row] == [1, 2, 3, 4]
