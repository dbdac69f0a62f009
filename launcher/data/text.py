"""A text of your own as one stream of tokens: its bytes, or what a tokenizer makes of it."""

import hashlib
import mmap
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.core.files import cache_folder
from launcher.core.locks import locked
from launcher.data.arguments import check_fraction, check_whole
from launcher.data.source import Data

PIECE = 1 << 18  # bytes of text that are encoded as one, up to the end of the line
AT_ONCE = 64  # pieces that the tokenizer's threads share
PACKED = {  # by the first bytes: what packed it, and what unpacks it
    b"\x1f\x8b\x08": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}


def load(path: str, block: int, tokenizer: str | None, cache: str | None, validation: float, test: float) -> Data:
    """Cut a text into samples of `block` tokens, each with the token that follows as its target.

    Sample i is tokens [i * block, (i + 1) * block), its targets are those one further; what is left at the end is not
    used. The last samples are the test split, those before them the validation split. The file is mapped, not read:
    neither the time to start nor the memory depend on its length. The settings are those of conf/data/text.yaml.
    """
    check_whole("data.block", block, "number of tokens; it must be an integer >= 1, such as 128")
    test, validation = check_fraction("data.test", test), check_fraction("data.validation", validation)
    file = find("data.path", path, "a text, as in data.path=book.txt")
    refuse_packed(file)
    vocabulary, kind = 256, np.dtype(np.uint8)
    if tokenizer is not None:
        file, vocabulary, kind = encoded(file, find("data.tokenizer", tokenizer, "a tokenizer.json"), cache)
    length = file.stat().st_size // kind.itemsize
    samples = (length - 1) // block
    if samples < 3:
        raise ConfigError(
            f"data.path: {path} has {length} tokens, and three samples of data.block={block} take {3 * block + 1}: one "
            "each to train, to validate and to test. Take a longer text or a smaller block."
        )
    tested = min(max(1, round(samples * test)), samples - 2)
    rest = samples - tested
    validated = min(max(1, round(rest * validation)), rest - 1)
    tokens = mapped(file, kind)
    inputs, targets = (tokens[first : first + samples * block].view(samples, block) for first in (0, 1))

    def split(first: int, last: int) -> TensorSplit:
        return TensorSplit(inputs[first:last], targets[first:last], mapped=True)

    return Data(
        name="text",
        task="language",
        input_shape=(block,),
        num_outputs=vocabulary,
        train=split(0, rest - validated),
        validation=split(rest - validated, rest),
        test=split(rest, samples),
    )


def find(setting: str, path: Any, what: str) -> Path:
    """A file that can be read, else a ConfigError that names the setting."""
    if not path or not isinstance(path, str):
        raise ConfigError(f"{setting}: {path!r} is no file; name {what}.")
    file = Path(path).expanduser()
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}. Name {what}.") from error


def refuse_packed(file: Path) -> None:
    """Refuse a file whose first bytes are those of a packed one: what could be learnt are the bytes of the packing.

    Raises:
        ConfigError: It is packed.
    """
    with file.open("rb") as opened:
        begin = opened.read(max(map(len, PACKED)))
    for mark, (name, unpack) in PACKED.items():
        if begin.startswith(mark):
            raise ConfigError(f"data.path: {file} is packed by {name} and no plain text; unpack it first: {unpack}.")


def mapped(file: Path, kind: np.dtype) -> Tensor:
    """The numbers in a file that is not empty, [n], mapped into memory and not read."""
    with file.open("rb") as opened:
        area = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    area.madvise(mmap.MADV_RANDOM)  # samples are drawn from all over it: 22 us for each, and 6 ms with reading ahead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to, which nobody does
        return torch.from_numpy(np.frombuffer(area, kind))


def encoded(file: Path, tokenizer: Path, cache: str | None) -> tuple[Path, int, np.dtype]:
    """The tokens of a text, from a file that the first process to need it writes while the others wait.

    The file is named by the contents of text and tokenizer, and appears whole or not at all.

    Returns:
        The file, the size of the vocabulary, and the type of a token.
    """
    content = tokenizer.read_bytes()
    encoder, changed, vocabulary = open_tokenizer(tokenizer, content)
    kind = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    with file.open("rb") as text:
        key = f"{hashlib.file_digest(text, 'sha256').hexdigest()[:24]}-{hashlib.sha256(content).hexdigest()[:24]}"
    key += "-plain" if changed else ""  # what an encoder as it came has written before is something else
    folder = Path(cache).expanduser() if cache else cache_folder()
    place = folder / f"{key}.{kind.name}"
    if place.exists():
        return place, vocabulary, kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            if not place.exists():
                with tempfile.TemporaryDirectory(dir=folder, prefix=".encoding-") as making:
                    with Path(making, "tokens").open("wb") as tokens:
                        for pieces in pieces_of(file):
                            for encoding in encode(encoder, pieces, file, tokenizer):
                                np.asarray(encoding.ids, dtype=kind).tofile(tokens)
                        tokens.flush()
                        os.fsync(tokens.fileno())
                    os.replace(Path(making, "tokens"), place)
    except OSError as error:
        raise ConfigError(
            f"data.cache: cannot keep the encoded text in {folder}: {error.strerror or error}. "
            "Set data.cache to a directory you can write."
        ) from error
    return place, vocabulary, kind


def open_tokenizer(tokenizer: Path, content: bytes) -> tuple[Any, bool, int]:
    """A tokenizer that cuts nothing off and adds nothing, whether it had to be made so, and its vocabulary's size.

    Args:
        tokenizer: Its file, for messages.
        content: Of that file.

    Raises:
        ConfigError: It is no tokenizer.json, or knows no words.
    """
    tokenizers = import_extra("tokenizers", "data.tokenizer: a text is encoded by the package tokenizers", "text")
    try:
        encoder = tokenizers.Tokenizer.from_buffer(content)
        changed = made_plain(encoder)
        words = encoder.get_vocab()
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(
            f"data.tokenizer: {tokenizer} is no tokenizer.json of Hugging Face's tokenizers: {error}."
        ) from error
    if not words:
        raise ConfigError(f"data.tokenizer: {tokenizer} has an empty vocabulary; train it first.")
    return encoder, changed, max(words.values()) + 1  # some numbers in between may stand for nothing


def made_plain(encoder: Any) -> bool:
    """Undo what a tokenizer.json may say of single sentences: to cut them, to fill them up, to part words at random.

    True where it said so.
    """
    said = (encoder.truncation, encoder.padding, getattr(encoder.model, "dropout", None))
    encoder.no_truncation()
    encoder.no_padding()
    if said[2]:
        encoder.model.dropout = None
    return any(said)


def pieces_of(file: Path) -> Iterator[list[str]]:
    """The text, which must be UTF-8, in pieces of whole lines, some at once."""
    pieces: list[str] = []
    start = 0
    with file.open("rb") as text:
        while piece := text.read(PIECE) + text.readline():
            try:
                pieces.append(piece.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"data.path: {file} is no text in UTF-8 (byte {start + error.start}: {error.reason}); leave out "
                    "data.tokenizer to learn its bytes."
                ) from error
            start += len(piece)
            if len(pieces) == AT_ONCE:
                yield pieces
                pieces = []
    yield pieces


def encode(encoder: Any, pieces: list[str], file: Path | str, tokenizer: Path) -> list[Any]:
    """What the tokenizer makes of pieces of the text, without the marks that some put around a sentence."""
    try:
        return encoder.encode_batch(pieces, add_special_tokens=False)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"data.tokenizer: {tokenizer} cannot encode {file}: {error}.") from error
