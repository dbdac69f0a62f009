"""Files of tokens as other programs write them: what is recognised, and how many are mapped at once."""

import struct

import numpy as np
import pytest

from launcher.core.errors import ConfigError
from launcher.data.shard_files import OpenShards, Shard, find_shards


def megatron(file, tokens, code):
    """A pair of files as Megatron-LM's IndexedDatasetBuilder leaves it: one sequence, one document."""
    file.write_bytes(tokens.tobytes())
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 1, 2)
    file.with_suffix(".idx").write_bytes(head + struct.pack("<iqqq", len(tokens), 0, 0, 1))


def llmc(file, tokens, magic=20240520, version=1, count=None):
    """A file as llm.c's data_common.py writes it."""
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(tokens) if count is None else count
    file.write_bytes(header.tobytes() + tokens.tobytes())


TOKENS = np.random.RandomState(0).randint(0, 200, 77)


@pytest.mark.parametrize(
    ("write", "kind", "given"),
    [
        (lambda file, tokens: megatron(file, tokens, 8), "uint16", None),
        (lambda file, tokens: megatron(file, tokens, 4), "int32", "uint16"),  # an index says it better than a setting
        (llmc, "uint16", None),
        (lambda file, tokens: llmc(file, tokens, 20240801, 7), "uint32", None),
        (lambda file, tokens: file.write_bytes(tokens.tobytes()), "uint16", "uint16"),
        (lambda file, tokens: file.write_bytes(tokens.tobytes()), "uint32", "uint32"),
        (lambda file, tokens: np.save(file, tokens), "int64", None),
        (lambda file, tokens: np.save(file, tokens), ">u2", None),
    ],
)
def test_every_format_gives_its_tokens(write, kind, given, tmp_path):
    file = tmp_path / ("a.npy" if given is None and kind in ("int64", ">u2") else "a.bin")
    write(file, TOKENS.astype(kind))
    (shard,) = find_shards(str(tmp_path), given)
    assert shard.mapped().tolist() == TOKENS.tolist() and shard.length == 77
    assert find_shards(str(file), given) == [shard]
    assert shard.vocabulary == {"uint16": 50257, "uint32": 128256}.get(
        kind if write is llmc or shard.offset == 1024 else ""
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.bin", "train"), ("val.bin", "validation"), ("fineweb_val_000000.bin", "validation"),
        ("c4-validation.00003.npy", "validation"), ("train/test_003.bin", "test"), ("en/train-7/0.bin", "train"),
        ("latest.bin", None), ("interval/7.npy", None), ("7/TRAINING.bin", "train"),
    ],
)  # fmt: skip
def test_the_name_says_the_split(name, split, tmp_path):
    assert Shard(tmp_path / name, name, "<u2", 0, 9).split == split


@pytest.mark.parametrize(
    ("write", "given", "words"),
    [
        (lambda at: None, None, ["data.path", "has no shard", ".npy"]),
        (lambda at: (at / "a.bin").write_bytes(bytes(10)), None, ["data.dtype", "a.bin has no header", "uint16"]),
        (lambda at: (at / "a.bin").write_bytes(bytes(10)), "float32", ["data.dtype", "'float32'", "uint16"]),
        (lambda at: (at / "a.bin").write_bytes(bytes(11)), "uint16", ["data.path", "11 bytes", "uint16"]),
        (
            lambda at: llmc(at / "a.bin", TOKENS.astype("uint16"), count=78),
            None,
            ["data.path", "78 tokens", "holds 77"],
        ),
        (lambda at: llmc(at / "a.bin", TOKENS.astype("uint16"), version=2), None, ["data.path", "version 2"]),
        (lambda at: megatron(at / "a.bin", TOKENS, 7), None, ["data.path", "a.idx is no index", "MMIDIDX"]),
        (lambda at: np.save(at / "a.npy", TOKENS.reshape(7, 11)), None, ["data.path", "[7, 11]", "one row"]),
        (lambda at: np.save(at / "a.npy", TOKENS / 2), None, ["data.path", "float64", "whole numbers"]),
        (lambda at: (at / "a.npy").write_bytes(bytes(99)), None, ["data.path", "a.npy is no array"]),
    ],
)
def test_what_is_no_shard_is_one_sentence(write, given, words, tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_shards(str(tmp_path), given)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ConfigError, match=r"data\.path: "):
        find_shards(str(tmp_path / "nowhere"), None)
    with pytest.raises(ConfigError, match=r"data\.path: None is no directory"):
        find_shards(None, None)


def test_an_array_that_was_cut_off_is_told(tmp_path):
    np.save(tmp_path / "a.npy", TOKENS)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-8])
    with pytest.raises(ConfigError, match=r"a\.npy is shorter than the 77 tokens"):
        find_shards(str(tmp_path), None)


def mapped_by_this_process(directory):
    """Names of the files in a directory that the kernel says are mapped."""
    with open("/proc/self/maps") as lines:
        return {line.split("/")[-1].strip() for line in lines if str(directory) in line}


def test_no_more_than_so_many_are_mapped(tmp_path):
    for i in range(9):
        np.save(tmp_path / f"{i}.npy", TOKENS + i)
    opened = OpenShards(find_shards(str(tmp_path), None), 3)
    for number in (0, 1, 2, 0, 5, 0, 7, 8, 0):
        assert opened[number].tolist() == (TOKENS + number).tolist()
        assert len(mapped_by_this_process(tmp_path)) <= 3
    assert mapped_by_this_process(tmp_path) == {"0.npy", "7.npy", "8.npy"}
