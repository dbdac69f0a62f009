"""Directories of MosaicML Streaming (MDS): an index.json and shards of rows, any of which is read alone.

A shard is the number n of its rows, n + 1 offsets of where each begins, all uint32, and the rows. A row is the sizes of
those of its columns that vary, uint32, and then each column: version 2 of the format of
https://github.com/mosaicml/streaming.
"""

import bz2
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.shard_files import PRINTED_SHARDS, map_file, split_of

INDEX = "index.json"
WHOLE = {"int": "<i8", **{f"{sign}int{bits}": f"<{kind}{bits // 8}" for sign, kind in (("", "i"), ("u", "u"))
                          for bits in (8, 16, 32, 64)}}  # fmt: skip
ARRAY_KINDS = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}  # of whole numbers
PRINTED = 4096  # bytes of a shard that a checksum reads


def _zstd(packed: bytes) -> bytes:
    return bytes(import_module("zstandard").ZstdDecompressor().decompress(packed))


UNPACK: dict[str, Callable[[bytes], bytes]] = {"zstd": _zstd, "gz": gzip.decompress, "bz2": bz2.decompress}


@dataclass(frozen=True)
class RowShard:
    """A shard of rows.

    Args:
        file: Where it is.
        packing: What packed it, a name of `UNPACK`; None: nothing.
        size: Bytes of it, unpacked.
        rows: Number of rows.
        columns: Name to encoding, in the order in which they lie in a row.
        sizes: Bytes of each column; None: they vary.
    """

    file: Path
    packing: str | None
    size: int
    rows: int
    columns: tuple[tuple[str, str], ...]
    sizes: tuple[int | None, ...]

    def mapped(self) -> np.ndarray:
        """Its bytes: mapped into memory, or where they are packed, unpacked in memory.

        Raises:
            BrokenFile: It is gone or damaged.
        """
        if self.packing is None:
            return map_file(self.file, "u1", self.size)
        try:
            content = UNPACK[self.packing](self.file.read_bytes())
        except Exception as error:  # each of the packages raises its own
            raise BrokenFile(f"data.path: cannot unpack {self.file} ({error})") from error
        if len(content) != self.size:
            raise BrokenFile(f"data.path: {self.file} unpacks to {len(content)} bytes, and its index says {self.size}")
        return np.frombuffer(content, "u1")

    def cell(self, content: np.ndarray, row: int, column: str) -> bytes:
        """The bytes of a column of a row, given those of the shard."""
        begin, end = content[4 + 4 * row :][:8].view("<u4").tolist()
        data = content[begin:end].tobytes()
        varying = sum(size is None for size in self.sizes)
        varied = iter(np.frombuffer(data, "<u4", varying).tolist())
        at = 4 * varying
        for (name, _), size in zip(self.columns, self.sizes, strict=True):
            length = next(varied) if size is None else size
            if name == column:
                return data[at : at + length]
            at += length
        raise AssertionError(column)

    def whole_numbers(self, content: np.ndarray, column: str) -> np.ndarray:
        """A column of whole numbers of all rows, [rows] int64, given the bytes of the shard."""
        names = [name for name, _ in self.columns]
        place = names.index(column)
        starts = content[4:][: 4 * self.rows].view("<u4").astype(np.int64)
        before = [size for size in self.sizes[:place] if size is not None]
        at = starts + 4 * sum(size is None for size in self.sizes) + sum(before)
        for number in range(place - len(before)):  # the columns before it whose sizes vary
            at += _gather(content, starts + 4 * number, "<u4")
        return _gather(content, at, WHOLE[self.columns[place][1]])


def _gather(content: np.ndarray, at: np.ndarray, kind: str) -> np.ndarray:
    """Numbers that begin at bytes `at`, [n] int64."""
    width = np.dtype(kind).itemsize
    return content[at[:, None] + np.arange(width)].view(kind)[:, 0].astype(np.int64)


def find_sets(path: Any) -> dict[str, list[RowShard]]:
    """The shards of each split: of a directory with an index.json, and of those in it that are named as a split.

    Raises:
        ConfigError: There is no index, or a shard is not as one says.
    """
    if not path or not isinstance(path, str):
        raise ConfigError(f"data.path: {path!r} is no directory; name the one with {INDEX}, as in data.path=images.")
    if "://" in path:
        raise ConfigError(f"data.path: {path} is not on this machine; copy the directory here first, and name that.")
    place = Path(path).expanduser()
    found = {}
    for index in sorted(place.glob(f"*/{INDEX}")):
        split = split_of(index.parent.name)
        if split in found:
            raise ConfigError(f"data.path: {place} has two directories of the split {split}; keep one.")
        if split is not None:
            found[split] = read_index(index)
    if (place / INDEX).is_file():
        if "train" in found:
            raise ConfigError(f"data.path: {place} has an {INDEX} and a directory train with another; keep one.")
        found["train"] = read_index(place / INDEX)
    if "train" not in found:
        raise ConfigError(f"data.path: {place} has no {INDEX}, nor a directory train with one.")
    return found


def read_index(index: Path) -> list[RowShard]:
    """The shards that an index.json lists, but for those without a row."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["version"] != 2:
            raise ConfigError(f"data.path: {index} is of version {content['version']}, and 2 is what can be read.")
        shards = [_shard(index.parent, entry) for entry in content["shards"] if entry["samples"]]
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data.path: {index} is no index of shards ({error!r}); write it again.") from error
    if not shards:
        raise ConfigError(f"data.path: {index} lists no row; name a directory that has some.")
    return shards


def _shard(folder: Path, entry: Any) -> RowShard:
    """A shard as an index describes it; a file that is not packed comes before one that is."""
    if entry["format"] != "mds":
        raise ConfigError(f"data.path: the shards of {folder} are of the format {entry['format']!r}, not 'mds'.")
    raw, packed = entry["raw_data"], entry.get("zip_data")
    file, packing, size = folder / raw["basename"], None, raw["bytes"]
    if not file.is_file() and packed:
        file, packing, size = folder / packed["basename"], entry["compression"].partition(":")[0], packed["bytes"]
    if not file.is_file():
        raise ConfigError(f"data.path: {file} is not there, and {folder / INDEX} lists it; fetch it again.")
    if file.stat().st_size != size:
        raise ConfigError(f"data.path: {file} has {file.stat().st_size} bytes, and {folder / INDEX} says {size}.")
    if packing is not None:
        _check_packing(file, packing)
    columns = tuple(zip(entry["column_names"], entry["column_encodings"], strict=True))
    return RowShard(file, packing, raw["bytes"], entry["samples"], columns, tuple(entry["column_sizes"]))


def _check_packing(file: Path, packing: str) -> None:
    """What can be unpacked here, else a ConfigError."""
    if packing not in UNPACK:
        raise ConfigError(
            f"data.path: {file} is packed by {packing}; known are {', '.join(UNPACK)}. Unpack the shards beside them."
        )
    if packing == "zstd":
        try:
            import_module("zstandard")
        except ImportError as error:
            raise ConfigError(
                f"data.path: {file} is packed by zstd, which takes a package (pip install zstandard); or unpack it "
                f"beside it: unzstd {file.name}."
            ) from error


def array_of(data: bytes, encoding: str) -> np.ndarray:
    """The whole numbers of a column `ndarray`, whose kind and shape are a part of its encoding or of each cell.

    Raises:
        ValueError: They are no whole numbers of one row.
    """
    _, kind, shape, *_ = *encoding.split(":"), "", ""
    at = 0
    if not kind:
        if data[0] not in ARRAY_KINDS:
            raise ValueError(f"an array of the kind {data[0]}, not of whole numbers")
        kind, at = ARRAY_KINDS[data[0]], 1
    if not shape:
        dimensions, width = data[at] >> 2, 1 << (data[at] & 3)
        if dimensions != 1:
            raise ValueError(f"an array of {dimensions} dimensions, not of one")
        at += 1 + width
    elif "," in shape:
        raise ValueError(f"an array of the shape {shape}, not of one dimension")
    numbers = np.frombuffer(data, np.dtype(kind), offset=at)
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"an array of {numbers.dtype}, not of whole numbers")
    return numbers


def image_of(data: bytes, encoding: str) -> Any:
    """The image of PIL that a cell holds, as a file or as its pixels."""
    from PIL import Image

    if encoding != "pil":
        return Image.open(io.BytesIO(data))
    width, height, length = np.frombuffer(data, "<u4", 3).tolist()
    return Image.frombytes(data[12 : 12 + length].decode(), (width, height), data[12 + length :])


def checksum(shards: Sequence[RowShard]) -> int:
    """A checksum of names and sizes of shards, and of the beginning and the end of some."""
    listed = [(one.file.name, one.size, one.rows, one.columns) for one in shards]
    found = zlib.crc32(json.dumps(listed).encode())
    for shard in shards[:: -(-len(shards) // PRINTED_SHARDS)]:
        with shard.file.open("rb") as content:
            found = zlib.crc32(content.read(PRINTED), found)
            content.seek(-min(PRINTED, shard.file.stat().st_size), 2)
            found = zlib.crc32(content.read(PRINTED), found)
    return found
