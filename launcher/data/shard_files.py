"""Files of tokens that are mapped into memory: which there are, how each is written, and a few of them at once."""

import json
import mmap
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from launcher.core.errors import BrokenFile, ConfigError

ENDINGS = (".bin", ".npy")
KINDS = ("uint8", "uint16", "int32", "uint32", "int64", "uint64")
MEGATRON = (
    b"MMIDIDX\x00\x00"  # begins an index: then version u64, kind of a token u8, counts of sequences and documents
)
MEGATRON_KINDS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Of llm.c: the number that begins a header of 256 int32; its version, the kind of a token, the vocabulary.
LLMC = {20240520: (1, "<u2", 50257), 20240801: (7, "<u4", 128256)}
LLMC_HEADER = 1024
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # what a name has: whose shard it is
PRINTED_SHARDS, PRINTED_PLACES, PRINTED_TOKENS = 16, 4, 256  # what a checksum reads


@dataclass(frozen=True)
class Shard:
    """A file of tokens.

    Args:
        file: Where it is.
        name: Its path within the directory.
        kind: Of a token, as NumPy writes it.
        offset: Bytes before the first token.
        length: Number of tokens.
        vocabulary: What the format says of it; None: nothing.
    """

    file: Path
    name: str
    kind: str
    offset: int
    length: int
    vocabulary: int | None = None

    @property
    def split(self) -> str | None:
        """The split that its name says."""
        return split_of(self.name)

    def mapped(self) -> np.ndarray:
        """Its tokens, [length], mapped into memory and not read.

        Raises:
            BrokenFile: It is gone, or has become shorter.
        """
        return map_file(self.file, self.kind, self.length, self.offset)


def split_of(name: str) -> str | None:
    """The split that a name, or else the nearest folder in it, begins a word with: train, val or test."""
    for part in reversed(Path(name).parts):
        found = re.findall(rf"(?<![a-z])({'|'.join(SPLITS)})", part.lower())
        if found:
            return SPLITS[found[-1]]
    return None


def map_file(file: Path, kind: str, length: int, offset: int = 0) -> np.ndarray:
    """Numbers of a file, [length], from so many bytes on, mapped into memory and not read.

    Raises:
        BrokenFile: It is gone, or has become shorter.
    """
    try:
        with file.open("rb") as opened:
            area = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        area.madvise(mmap.MADV_RANDOM)  # samples are drawn from all over it: 22 us each, 6 ms with reading ahead
        return np.frombuffer(area, kind, length, offset)
    except (OSError, ValueError) as error:
        raise BrokenFile(f"data.path: cannot read {file} ({error})") from error


class Mappable(Protocol):
    """A file whose content can be mapped."""

    def mapped(self) -> np.ndarray:
        """Its content, which is read where it is asked for."""


class OpenShards:
    """What is in shards, of which at most so many are mapped at once: the one not asked for longest goes first.

    Args:
        shards: The shards.
        most: How many are mapped at most.
    """

    def __init__(self, shards: Sequence[Mappable], most: int) -> None:
        self.shards, self.most = shards, most
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, number: int) -> np.ndarray:
        if number not in self._mapped:
            while len(self._mapped) >= self.most:
                self._mapped.popitem(last=False)
            self._mapped[number] = self.shards[number].mapped()
        self._mapped.move_to_end(number)
        return self._mapped[number]

    def __len__(self) -> int:
        """Shards that are mapped."""
        return len(self._mapped)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenShards, (self.shards, self.most)  # a process that loads maps its own


def find_shards(path: Any, kind: str | None) -> list[Shard]:
    """The shards that `data.path` names, a file or those in a directory at any depth, by path.

    Of each its size and its header alone are read.

    Args:
        path: `data.path`.
        kind: `data.dtype`, of tokens in a .bin without a header.

    Raises:
        ConfigError: There is none, or one is none of the formats that are known.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"data.dtype: {kind!r} is none of {', '.join(KINDS)}, nor null.")
    if not path or not isinstance(path, str):
        raise ConfigError(f"data.path: {path!r} is no directory; name the one with the shards, as in data.path=tokens.")
    place = Path(path).expanduser()
    try:
        if place.is_file():
            return [_look_at(place, place.name, kind)]
        files = []
        for folder, folders, names in os.walk(place, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [Path(folder, name) for name in names if name.endswith(ENDINGS) and not name.startswith(".")]
        shards = [_look_at(file, file.relative_to(place).as_posix(), kind) for file in sorted(files)]
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {error.filename or place}: {error.strerror or error}.") from error
    if not shards:
        raise ConfigError(f"data.path: {place} has no shard ({' or '.join(ENDINGS)}); name the directory with them.")
    return shards


def _refuse(error: OSError) -> None:
    raise error


def _look_at(file: Path, name: str, kind: str | None) -> Shard:
    """A shard by its header: an array of NumPy, Megatron's, llm.c's, or tokens alone."""
    if file.suffix == ".npy":
        return _array(file, name)
    size, index = file.stat().st_size, file.with_suffix(".idx")
    if index.is_file():
        return _megatron(file, name, size, index)
    with file.open("rb") as opened:
        begin = opened.read(12)
    magic, version, count = np.frombuffer(begin.ljust(12, b"\0"), "<i4").tolist()
    if magic in LLMC:
        expected, llmc_kind, vocabulary = LLMC[magic]
        held = (size - LLMC_HEADER) // np.dtype(llmc_kind).itemsize
        if version != expected or not 0 <= count <= held:
            raise ConfigError(
                f"data.path: the header of {file} says version {version} and {count} tokens; known is version "
                f"{expected}, and the file holds {max(0, held)} tokens. Write it again."
            )
        return Shard(file, name, llmc_kind, LLMC_HEADER, count, vocabulary)
    if kind is None:
        raise ConfigError(
            f"data.dtype: {file} has no header that says what a token is; set data.dtype=uint16 (as nanoGPT writes "
            "them) or uint32."
        )
    return Shard(file, name, np.dtype(kind).newbyteorder("<").str, 0, _whole(file, size, kind))


def _whole(file: Path, size: int, kind: str) -> int:
    """Tokens in a file of nothing else."""
    count, rest = divmod(size, np.dtype(kind).itemsize)
    if rest:
        raise ConfigError(f"data.path: the {size} bytes of {file} are no whole number of tokens of {np.dtype(kind)}.")
    return count


def _megatron(file: Path, name: str, size: int, index: Path) -> Shard:
    """A shard with an index of Megatron-LM beside it."""
    with index.open("rb") as opened:
        begin = opened.read(34)
    version = int.from_bytes(begin[9:17], "little")
    kind = MEGATRON_KINDS.get(begin[17]) if len(begin) == 34 else None
    if not begin.startswith(MEGATRON) or version != 1 or kind is None:
        raise ConfigError(
            f"data.path: {index} is no index of whole numbers as Megatron-LM writes it (MMIDIDX, version 1); write it "
            "again, or move it away and set data.dtype."
        )
    return Shard(file, name, kind, 0, _whole(file, size, kind))


def _array(file: Path, name: str) -> Shard:
    """A shard that is an array of NumPy."""
    with file.open("rb") as opened:
        try:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(opened)
        except ValueError as error:
            raise ConfigError(f"data.path: {file} is no array of NumPy: {error}.") from error
        offset = opened.tell()
    if len(shape) != 1 or kind.kind not in "iu":
        raise ConfigError(
            f"data.path: {file} is an array {list(shape)} of {kind}; a shard is one row of whole numbers, its tokens."
        )
    if file.stat().st_size < offset + shape[0] * kind.itemsize:
        raise ConfigError(f"data.path: {file} is shorter than the {shape[0]} tokens of its header; write it again.")
    return Shard(file, name, kind.str, offset, shape[0])


def checksum(shards: Sequence[Shard], vocabulary: int) -> int:
    """A checksum of names, sizes and some tokens of some shards.

    Raises:
        ConfigError: One of these tokens is none of the vocabulary.
    """
    found = zlib.crc32(json.dumps([(one.name, one.kind, one.length) for one in shards]).encode())
    for shard in shards[:: -(-len(shards) // PRINTED_SHARDS)]:
        tokens = shard.mapped()
        for place in range(PRINTED_PLACES):
            first = (shard.length - PRINTED_TOKENS) * place // (PRINTED_PLACES - 1)
            some = tokens[max(0, first) :][:PRINTED_TOKENS]
            if fault := unknown(some, vocabulary, shard):
                raise ConfigError(f"{fault}. Set data.vocabulary to that of the tokenizer.")
            found = zlib.crc32(some.tobytes(), found)
    return found


def unknown(tokens: np.ndarray, vocabulary: int, shard: Shard) -> str | None:
    """What is said of a token that is none of 0..vocabulary-1, where one is there."""
    if not len(tokens) or (int(tokens.max()) < vocabulary and int(tokens.min()) >= 0):
        return None
    strange = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
    return f"data.vocabulary: {shard.file} has the token {strange}, which is none of 0..{vocabulary - 1}"
