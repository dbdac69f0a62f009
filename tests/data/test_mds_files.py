"""The format of MosaicML Streaming, beside a shard of its own writer."""

import json

import numpy as np
import pytest
from mds_written import TINY, TINY_INDEX, tiny, write

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.mds_files import array_of, find_sets, read_index


def test_each_cell_is_what_its_writer_was_given(tmp_path):
    tiny(tmp_path / "t")
    (shard,) = find_sets(str(tmp_path / "t"))["train"]
    content = shard.mapped()
    for row in range(4):
        assert shard.cell(content, row, "about").decode() == "naïve"[:row]
        assert shard.cell(content, row, "id") == np.int64(-row).tobytes()
        tokens = array_of(shard.cell(content, row, "tokens"), "ndarray")
        assert tokens.tolist() == list(range(5 * row, 5 * row + 5))
        assert tokens.dtype == [np.uint16, np.int32, np.int64, np.uint8][row]
    assert shard.whole_numbers(content, "id").tolist() == [0, -1, -2, -3]
    assert shard.whole_numbers(content, "kind").tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("packing", ["gz", "bz2"])
def test_a_packed_shard_is_unpacked_unless_it_is_there_plain(packing, tmp_path):
    rows = [{"a": bytes([i]) * i} for i in range(7)]
    write(tmp_path / "t", {"a": "bytes"}, rows, 3, packing)
    shards = read_index(tmp_path / "t/index.json")
    assert [shard.rows for shard in shards] == [3, 3, 1]
    found = [shard.cell(shard.mapped(), i, "a") for shard in shards for i in range(shard.rows)]
    assert found == [row["a"] for row in rows]
    (tmp_path / "t/shard.00000.mds").write_bytes(shards[0].mapped().tobytes())
    (tmp_path / f"t/shard.00000.mds.{packing}").unlink()
    assert [shard.packing for shard in read_index(tmp_path / "t/index.json")] == [None, packing, packing]
    file = shards[1].file
    file.write_bytes(file.read_bytes()[:-5] + b"wrong")
    with pytest.raises(BrokenFile, match=r"data\.path: cannot unpack .*00001"):
        shards[1].mapped()


def test_arrays_may_have_their_kind_and_shape_in_the_encoding():
    numbers = np.arange(5, dtype=np.int16)
    assert array_of(numbers.tobytes(), "ndarray:int16:5").tolist() == [0, 1, 2, 3, 4]
    assert array_of(bytes([1 << 2, 5]) + numbers.tobytes(), "ndarray:int16").tolist() == [0, 1, 2, 3, 4]
    assert array_of(bytes([17, (1 << 2) | 1, 5, 0]) + numbers.tobytes(), "ndarray").tolist() == [0, 1, 2, 3, 4]
    for data, encoding in [(bytes([34, 4, 1]) + bytes(4), "ndarray"), (bytes([17, 8, 1, 1, 0, 0]), "ndarray"),
                           (bytes(8), "ndarray:int16:2,2"), (bytes(8), "ndarray:float32:2")]:  # fmt: skip
        with pytest.raises(ValueError, match="not of"):
            array_of(data, encoding)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 1}, ["of version 1"]),
        ({"shards": [{}]}, ["no index of shards", "KeyError"]),
        ({"shards": []}, ["lists no row"]),
        ({"shards": [TINY_INDEX["shards"][0] | {"format": "xsv"}]}, ["'xsv'", "mds"]),
        ({"shards": [TINY_INDEX["shards"][0] | {"raw_data": {"basename": "b.mds", "bytes": 1}}]}, ["b.mds is not"]),
        ({"shards": [TINY_INDEX["shards"][0] | {"raw_data": {"basename": "shard.00000.mds", "bytes": 416}}]},
         ["has 415 bytes", "says 416"]),
        ({"shards": [TINY_INDEX["shards"][0] | {"raw_data": {"basename": "b.mds", "bytes": 1}, "compression": "br:3",
                     "zip_data": {"basename": "shard.00000.mds", "bytes": len(TINY)}}]}, ["packed by br", "zstd"]),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_one_sentence(change, words, tmp_path):
    tiny(tmp_path / "t")
    (tmp_path / "t/index.json").write_text(json.dumps(TINY_INDEX | change))
    with pytest.raises(ConfigError, match=r"data\.path: ") as caught:
        find_sets(str(tmp_path / "t"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_directories_say_the_splits(tmp_path):
    for name in ("train", "val", "test_2", "others"):
        tiny(tmp_path / "t" / name)
    assert set(find_sets(str(tmp_path / "t"))) == {"train", "validation", "test"}
    tiny(tmp_path / "t/valid")
    with pytest.raises(ConfigError, match="two directories of the split validation"):
        find_sets(str(tmp_path / "t"))
    for path, words in [
        ("s3://bucket/data", "not on this machine"),
        (None, "None is no directory"),
        (str(tmp_path), "has no"),
    ]:
        with pytest.raises(ConfigError, match=f"data.path: .*{words}"):
            find_sets(path)
