"""A text of your own as one stream of tokens: its bytes, or what a tokenizer makes of it."""

import hashlib
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.core.files import cache_folder, read_json
from launcher.core.locks import locked
from launcher.data.arguments import check_fraction, check_whole
from launcher.data.documents import PIECE, Documents, find, find_documents, has_rows
from launcher.data.packed import packing, pieces
from launcher.data.source import Data

AT_ONCE = 64  # pieces that the tokenizer's threads share, as many rows as are as long
ROWS_AT_ONCE = 4096
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot_id|>", "<|im_end|>")  # by `auto`


def load(
    path: str | Sequence[str],
    block: int,
    tokenizer: str | None,
    cache: str | None,
    validation: float,
    test: float,
    field: str | None,
    end_of_text: str | None,
) -> Data:
    """Cut a text into samples of `block` tokens, each with the token that follows as its target.

    Sample i is tokens [i * block, (i + 1) * block), its targets are those one further; what is left at the end is not
    used. The last samples are the test split, those before them the validation split. The file is mapped, not read:
    neither the time to start nor the memory depend on its length. What is packed, of several documents or encoded lies
    in the cache as one file. The settings are those of conf/data/text.yaml.
    """
    check_whole("data.block", block, "number of tokens; it must be an integer >= 1, such as 128")
    test, validation = check_fraction("data.test", test), check_fraction("data.validation", validation)
    documents = find_documents(path, field)
    notes = _about(documents)
    end_of_text = _check_end(end_of_text, tokenizer)
    stream = Stream(documents.files[0], 256, np.dtype(np.uint8), [])
    if tokenizer is not None:
        stream = encoded(documents, find("data.tokenizer", tokenizer, "a tokenizer.json"), end_of_text, cache)
    elif not documents.alone or packing(documents.files[0]) is not None:
        stream = joined(documents, cache)
    length = stream.file.stat().st_size // stream.kind.itemsize
    samples = (length - 1) // block
    if samples < 3:
        raise ConfigError(
            f"data.path: {path} has {length} tokens, and three samples of data.block={block} take {3 * block + 1}: one "
            "each to train, to validate and to test. Take a longer text or a smaller block."
        )
    tested = min(max(1, round(samples * test)), samples - 2)
    rest = samples - tested
    validated = min(max(1, round(rest * validation)), rest - 1)
    tokens = mapped(stream.file, stream.kind)
    inputs, targets = (tokens[first : first + samples * block].view(samples, block) for first in (0, 1))

    def split(first: int, last: int) -> TensorSplit:
        return TensorSplit(inputs[first:last], targets[first:last], mapped=True)

    return Data(
        name="text",
        task="language",
        input_shape=(block,),
        num_outputs=stream.vocabulary,
        train=split(0, rest - validated),
        validation=split(rest - validated, rest),
        test=split(rest, samples),
        notes=[*notes, *stream.notes],
        end_of_text=stream.end,
    )


class Stream(NamedTuple):
    """A text as one stream of tokens in a file."""

    file: Path
    vocabulary: int
    kind: np.dtype  # of a token
    notes: list[str]  # for the log
    end: int | None = None  # the token that ends a document


def _about(documents: Documents) -> list[str]:
    """Lines about the files of a text: how many there are, and those that hold rows and are read as they are."""
    notes = []
    if len(documents.files) > 1:
        first, last = documents.files[0], documents.files[-1]
        notes.append(f"the text is that of {len(documents.files):,} files, from {first} to {last}")
    rows = [file for file in documents.files if documents.field is None and has_rows(file)]
    if rows:
        notes.append(f"{rows[0]} is read as it is, JSON and all; data.field=text reads that field of each row")
    return notes


def _check_end(end_of_text: Any, tokenizer: str | None) -> str | None:
    """`data.end_of_text`: a token, auto or None; of bytes none, which `joined` says.

    Raises:
        ConfigError: It is something else, or a token of bytes.
    """
    if end_of_text is not None and (not isinstance(end_of_text, str) or not end_of_text):
        raise ConfigError(
            f"data.end_of_text: {end_of_text!r} is no token; it must be auto, null or one such as '<|endoftext|>'."
        )
    if tokenizer is None and end_of_text not in ("auto", None):
        raise ConfigError(
            f"data.end_of_text: bytes have no token {end_of_text!r}; set data.tokenizer, or data.end_of_text=null."
        )
    return end_of_text


def mapped(file: Path, kind: np.dtype) -> Tensor:
    """The numbers in a file that is not empty, [n], mapped into memory and not read."""
    with file.open("rb") as opened:
        area = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    area.madvise(mmap.MADV_RANDOM)  # samples are drawn from all over it: 22 us for each, and 6 ms with reading ahead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to, which nobody does
        return torch.from_numpy(np.frombuffer(area, kind))


def joined(documents: Documents, cache: str | None) -> Stream:
    """The bytes of documents, unpacked and one after the other, from a file that is kept; see `kept`."""

    def write(tokens: IO[bytes]) -> None:
        if documents.alone:  # whatever its bytes are
            tokens.writelines(pieces(documents.files[0], "data.path", PIECE))
        else:
            tokens.writelines(text.encode() for text, _ in documents.pieces())

    file = kept(f"{_digest(documents)}-bytes.uint8", write, cache)
    notes = [] if documents.alone else ["nothing parts the documents: bytes have no token for the end of a text"]
    return Stream(file, 256, np.dtype(np.uint8), notes)


def encoded(documents: Documents, tokenizer: Path, end_of_text: str | None, cache: str | None) -> Stream:
    """The tokens of documents, from a file that is kept; see `kept`.

    Args:
        documents: Where the text is.
        tokenizer: A tokenizer.json.
        end_of_text: The token between two documents; auto: the tokenizer's own; None: none.
        cache: `data.cache`.
    """
    content = tokenizer.read_bytes()
    encoder, undone, vocabulary = open_tokenizer(tokenizer, content)
    kind = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    notes = [f"{tokenizer} would {' and '.join(undone)}; switched off, as a text is one stream"] if undone else []
    key = f"{_digest(documents)}-{hashlib.sha256(content).hexdigest()[:24]}"
    end, told = find_end(encoder, tokenizer, end_of_text)
    if not documents.alone:
        notes.append(told)
        key += "" if end is None else f"-{end}"
    key += "-plain" if undone else ""  # what an encoder as it came has written before is something else

    def write(tokens: IO[bytes]) -> None:
        begun = False
        for batch in batches_of(documents):
            encodings = encode(encoder, [text for text, _ in batch], documents.files[0], tokenizer)
            for encoding, (_, begins) in zip(encodings, batch, strict=True):
                if begins and begun and end is not None:
                    tokens.write(np.asarray([end], dtype=kind).tobytes())
                tokens.write(np.asarray(encoding.ids, dtype=kind).tobytes())
                begun = True

    return Stream(kept(f"{key}.{kind.name}", write, cache), vocabulary, kind, notes, end)


def find_end(encoder: Any, tokenizer: Path, end_of_text: str | None) -> tuple[int | None, str]:
    """The number of the token that parts documents, or None, and a line about it for the log.

    By `auto` it is the one that a tokenizer_config.json beside the tokenizer names, or the first of `END_OF_TEXT`.

    Raises:
        ConfigError: The tokenizer does not have it.
    """
    if end_of_text is None:
        return None, "nothing parts the documents: data.end_of_text=null"
    if end_of_text != "auto":
        number = encoder.token_to_id(end_of_text)
        if number is None:
            raise ConfigError(
                f"data.end_of_text: {tokenizer} has no token {end_of_text!r}; name one, or null for none."
            )
        return number, f"documents are parted by the token {end_of_text!r}"
    beside = read_json(tokenizer.with_name("tokenizer_config.json")).get("eos_token")
    named = beside.get("content") if isinstance(beside, dict) else beside
    for token in (named, *END_OF_TEXT):
        number = encoder.token_to_id(token) if isinstance(token, str) else None
        if number is not None:
            return number, f"documents are parted by the token {token!r} (data.end_of_text says otherwise)"
    return None, f"nothing parts the documents: {tokenizer} has no known token for it; data.end_of_text names one"


def _digest(documents: Documents) -> str:
    """A name of the contents of documents; of a plain file it is that of its bytes."""
    digests = []
    for file in documents.files:
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    if documents.alone:
        return digests[0][:24]
    return hashlib.sha256("\n".join([*digests, repr(documents.field)]).encode()).hexdigest()[:24]


def kept(name: str, write: Callable[[IO[bytes]], None], cache: str | None) -> Path:
    """A file in the cache, which the first process to need it writes while the others wait.

    It is named by the contents of what it is made from, and appears whole or not at all.

    Args:
        name: Of the file.
        write: Writes it.
        cache: `data.cache`.

    Raises:
        ConfigError: The directory cannot be written to.
    """
    folder = Path(cache).expanduser() if cache else cache_folder()
    place = folder / name
    if place.exists():
        return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{place.stem}.lock"):
            if not place.exists():
                with tempfile.TemporaryDirectory(dir=folder, prefix=".encoding-") as making:
                    with Path(making, "tokens").open("wb") as tokens:
                        write(tokens)
                        tokens.flush()
                        os.fsync(tokens.fileno())
                    os.replace(Path(making, "tokens"), place)
    except OSError as error:
        raise ConfigError(
            f"data.cache: cannot keep the encoded text in {folder}: {error.strerror or error}. "
            "Set data.cache to a directory you can write."
        ) from error
    return place


def open_tokenizer(tokenizer: Path, content: bytes) -> tuple[Any, list[str], int]:
    """A tokenizer that cuts nothing off and adds nothing, what had to be undone for it, and its vocabulary's size.

    Args:
        tokenizer: Its file, for messages.
        content: Of that file.

    Raises:
        ConfigError: It is no tokenizer.json, or knows no words.
    """
    tokenizers = import_extra("tokenizers", "data.tokenizer: a text is encoded by the package tokenizers", "text")
    try:
        encoder = tokenizers.Tokenizer.from_buffer(content)
        undone = made_plain(encoder)
        words = encoder.get_vocab()
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(
            f"data.tokenizer: {tokenizer} is no tokenizer.json of Hugging Face's tokenizers: {error}."
        ) from error
    if not words:
        raise ConfigError(f"data.tokenizer: {tokenizer} has an empty vocabulary; train it first.")
    return encoder, undone, max(words.values()) + 1  # some numbers in between may stand for nothing


def made_plain(encoder: Any) -> list[str]:
    """Undo what a tokenizer.json may say of single sentences: to cut them, to fill them up, to part words at random.

    Returns:
        What it would have done.
    """
    truncation, padding, dropout = encoder.truncation, encoder.padding, getattr(encoder.model, "dropout", None)
    undone = [f"cut each text after {truncation['max_length']} tokens"] if truncation else []
    undone += ["fill up each text to a length"] if padding else []
    undone += [f"part words at random (dropout {dropout:.3g})"] if dropout else []
    encoder.no_truncation()
    encoder.no_padding()
    if dropout:
        encoder.model.dropout = None
    return undone


def batches_of(documents: Documents) -> Iterator[list[tuple[str, bool]]]:
    """The pieces of documents, some at once."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in documents.pieces():
        batch.append(piece)
        size += max(1, len(piece[0]))
        if size >= AT_ONCE * PIECE or len(batch) == ROWS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(encoder: Any, pieces: list[str], file: Path | str, tokenizer: Path) -> list[Any]:
    """What the tokenizer makes of pieces of the text, without the marks that some put around a sentence."""
    try:
        return encoder.encode_batch(pieces, add_special_tokens=False)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"data.tokenizer: {tokenizer} cannot encode {file}: {error}.") from error
