"""A column of texts as sequences of tokens, by a tokenizer or byte by byte, kept in a file for the next start."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.core.errors import ConfigError
from launcher.data.arguments import check_whole
from launcher.data.text import Tokenizer, kept, open_tokenizer
from launcher.data.token_rows import PADDING

BEGIN, FIRST_BYTE = 1, 2  # tokens of bytes: 0 fills up, 1 begins each text, 2 is the byte 0
BYTES = FIRST_BYTE + 256
AT_ONCE = 4096  # texts that the tokenizer's threads share
PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


@dataclass
class Sequences:
    """Sequences of tokens: `tokens` [total] one after the other, `offsets` [n + 1] int64 where each begins."""

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return int(np.diff(self.offsets).max(initial=0))


@dataclass
class Vocabulary:
    """What makes tokens of texts.

    Args:
        file: tokenizer.json of Hugging Face's tokenizers, or a directory that holds one; None: byte by byte.
        most: Tokens of a text at most, with those that the tokenizer puts around it; what is beyond is cut off.
        cache: Directory for what was encoded; None: the user's own.
    """

    file: str | None
    most: int
    cache: str | None

    def __post_init__(self) -> None:
        check_whole("data.max_tokens", self.most, "number of tokens; it must be an integer >= 1, such as 512")
        self.size, self.padding, self.digest = BYTES, PADDING, ""
        self._tokenizer = None if self.file is None else open_tokenizer(self.file)
        if self._tokenizer is not None:
            encoder, self.size = self._tokenizer.encoder, self._tokenizer.size
            known = (encoder.token_to_id(name) for name in PADS)
            self.padding = next((number for number in known if number is not None), PADDING)
            encoder.enable_truncation(self.most)
            self.digest = hashlib.sha256(self._tokenizer.content).hexdigest()[:16]

    def sequences(
        self, texts: Sequence[str | None], where: str, setting: str = "data.input", keep: bool = True
    ) -> tuple[Sequences, int]:
        """The tokens of texts, and how many of the texts were too long.

        Args:
            texts: One per row.
            where: The column and the split, for messages.
            setting: That named them, for messages.
            keep: Whether what the tokenizer makes of them is kept in a file for the next start.

        Raises:
            ConfigError: A text is missing, or has no tokens.
        """
        missing = next((row for row, text in enumerate(texts) if text is None), None)
        if missing is not None:
            raise ConfigError(f"{setting}: row {missing} of {where} has no text; remove it, or give it one.")
        if self._tokenizer is None:
            found, cut = _of_bytes([text.encode() for text in texts if text is not None], self.most)
        elif keep:
            found, cut = self._kept(self._tokenizer, [text for text in texts if text is not None], where)
        else:
            found, cut = _encoded(self._tokenizer, [text for text in texts if text is not None], where)
        empty = np.flatnonzero(np.diff(found.offsets) == 0)
        if len(empty):
            raise ConfigError(f"{setting}: row {empty[0]} of {where} has a text without tokens; remove it.")
        return found, cut

    def _kept(self, tokenizer: Tokenizer, texts: list[str], where: str) -> tuple[Sequences, int]:
        """The same by the tokenizer, from files that are kept; see `kept`."""
        content = hashlib.sha256(f"{self.most}".encode() + tokenizer.content)
        for text in texts:
            content.update(f"{len(text)}:".encode() + text.encode("utf-8", "surrogatepass"))

        def write(place: Path) -> None:
            found, cut = _encoded(tokenizer, texts, where)
            place.mkdir()
            for name, array in (("tokens", found.tokens), ("offsets", found.offsets), ("cut", [cut])):
                np.save(place / f"{name}.npy", array)

        place = kept(f"{content.hexdigest()[:48]}.texts", write, self.cache)
        tokens, offsets, cut = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets", "cut"))
        return Sequences(tokens, np.array(offsets)), int(cut[0])


def _encoded(tokenizer: Tokenizer, texts: list[str], where: str) -> tuple[Sequences, int]:
    """The tokens of texts by a tokenizer, and how many of the texts were too long."""
    pieces, lengths, cut = [np.empty(0, np.uint32)], [0], 0
    for first in range(0, len(texts), AT_ONCE):
        for encoding in tokenizer.encode(texts[first : first + AT_ONCE], where, marks=True):
            pieces.append(np.asarray(encoding.ids, np.uint32))
            lengths.append(len(encoding.ids))
            cut += bool(encoding.overflowing)
    return Sequences(np.concatenate(pieces), np.cumsum(lengths)), cut


def _of_bytes(texts: Sequence[bytes], most: int) -> tuple[Sequences, int]:
    """Each byte a token, behind one that begins the text."""
    cut = [text[: most - 1] for text in texts]
    lengths = np.array([0, *(1 + len(text) for text in cut)])
    offsets = np.cumsum(lengths)
    tokens = np.full(offsets[-1], BEGIN, np.uint16)
    joined = np.frombuffer(b"".join(cut), np.uint8).astype(np.uint16) + FIRST_BYTE
    inside = np.ones(len(tokens), bool)
    inside[offsets[:-1]] = False
    tokens[inside] = joined
    return Sequences(tokens, offsets), sum(len(text) > most - 1 for text in texts)


def of_texts(
    columns: Mapping[str, Sequence[str | None]], name: str, vocabulary: Vocabulary
) -> tuple[dict[str, Sequences], list[str]]:
    """The tokens of a column of texts of each split, and lines for the log.

    Args:
        columns: Split to its texts.
        name: Of the column.
        vocabulary: What makes tokens of them.
    """
    found, cut = {}, 0
    for split, texts in columns.items():
        found[split], more = vocabulary.sequences(texts, f"{name!r} of {split}")
        cut += more
    how = "byte by byte" if vocabulary.file is None else f"by {vocabulary.file}"
    longest = max(one.longest for one in found.values())
    notes = [f"texts of {name!r} are read {how}: {vocabulary.size:,} tokens, the longest text has {longest:,}"]
    if cut:
        notes.append(f"{cut:,} texts of {name!r} are longer than data.max_tokens={vocabulary.most:,} and cut off there")
    return found, notes


def lengths_of(column: Any) -> np.ndarray:
    """The lengths [n] int64 of the lists in a column of Arrow; of one that is missing 0."""
    lengths: np.ndarray = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def of_lists(columns: Mapping[str, Any], name: str) -> tuple[dict[str, Sequences], int]:
    """The tokens of a column of Arrow that holds lists of them, of each split, and the size of their vocabulary.

    Raises:
        ConfigError: A row is empty, or holds what is no token.
    """
    found, size = {}, 0
    for split, column in columns.items():
        lengths, tokens = lengths_of(column), column.flatten()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        strange = tokens.fill_null(-1).to_numpy(zero_copy_only=False) < 0
        rows = lengths == 0
        rows[np.searchsorted(offsets, np.flatnonzero(strange), "right") - 1] = True
        if rows.any():
            row = int(rows.argmax())
            held = column[row].as_py()
            raise ConfigError(f"data.input: row {row} of {name!r} of {split} is {held}, no list of tokens >= 0.")
        found[split] = Sequences(tokens.to_numpy(zero_copy_only=False).astype(np.uint32), offsets)
        size = max(size, int(found[split].tokens.max()) + 1)
    return found, size
