"""A text of your own as one stream of tokens: its bytes, or what a tokenizer makes of it."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.core.files import cache_folder, read_json, replacing
from launcher.core.locks import locked
from launcher.data.arguments import check_fraction, check_whole
from launcher.data.documents import PIECE, Documents, find, find_documents, has_rows
from launcher.data.packed import packing, pieces
from launcher.data.shard_files import map_file
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
        stream = encoded(documents, open_tokenizer(tokenizer), end_of_text, cache)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to, which nobody does
        tokens = torch.from_numpy(map_file(stream.file, stream.kind.str, length))
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


def joined(documents: Documents, cache: str | None) -> Stream:
    """The bytes of documents, unpacked and one after the other, from a file that is kept; see `kept`."""

    def write(place: Path) -> None:
        with replacing(place, "wb", durable=True) as tokens:
            if documents.alone:  # whatever its bytes are
                tokens.writelines(pieces(documents.files[0], "data.path", PIECE))
            else:
                tokens.writelines(text.encode() for text, _ in documents.pieces())

    file = kept(f"{_digest(documents)}-bytes.uint8", write, cache)
    notes = [] if documents.alone else ["nothing parts the documents: bytes have no token for the end of a text"]
    return Stream(file, 256, np.dtype(np.uint8), notes)


class Tokenizer(NamedTuple):
    """A tokenizer that cuts nothing off and adds nothing."""

    file: Path
    content: bytes  # of the file
    encoder: Any  # of Hugging Face's tokenizers
    undone: list[str]  # what it would have done
    size: int  # of its vocabulary

    def encode(self, texts: Sequence[str], where: Any, marks: bool = False) -> list[Any]:
        """What it makes of texts, with or without the marks that some put around a sentence; where is for messages."""
        try:
            return self.encoder.encode_batch(texts, add_special_tokens=marks)
        except Exception as error:  # tokenizers raises nothing more special
            raise ConfigError(f"data.tokenizer: {self.file} cannot encode {where}: {error}.") from error


def encoded(documents: Documents, tokenizer: Tokenizer, end_of_text: str | None, cache: str | None) -> Stream:
    """The tokens of documents, from a file that is kept; see `kept`.

    Args:
        documents: Where the text is.
        tokenizer: What makes tokens of them.
        end_of_text: The token between two documents; auto: the tokenizer's own; None: none.
        cache: `data.cache`.
    """
    kind, undone = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32), tokenizer.undone
    notes = [f"{tokenizer.file} would {' and '.join(undone)}; switched off, as a text is one stream"] if undone else []
    key = f"{_digest(documents)}-{hashlib.sha256(tokenizer.content).hexdigest()[:24]}"
    end, told = find_end(tokenizer.encoder, tokenizer.file, end_of_text)
    if not documents.alone:
        notes.append(told)
        key += "" if end is None else f"-{end}"
    key += "-plain" if undone else ""  # what an encoder as it came has written before is something else

    def write(place: Path) -> None:
        begun = False
        with replacing(place, "wb", durable=True) as tokens:
            for batch in batches_of(documents):
                encodings = tokenizer.encode([text for text, _ in batch], documents.files[0])
                for encoding, (_, begins) in zip(encodings, batch, strict=True):
                    if begins and begun and end is not None:
                        tokens.write(np.asarray([end], dtype=kind).tobytes())
                    tokens.write(np.asarray(encoding.ids, dtype=kind).tobytes())
                    begun = True

    return Stream(kept(f"{key}.{kind.name}", write, cache), tokenizer.size, kind, notes, end)


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


def kept(name: str, write: Callable[[Path], None], cache: str | None) -> Path:
    """A file or directory in the cache, which the first process to need it writes while the others wait.

    It is named by the contents of what it is made from, and appears whole or not at all.

    Args:
        name: Of it.
        write: Writes it at the path that it is given.
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
                    write(Path(making, "whole"))
                    os.replace(Path(making, "whole"), place)
    except OSError as error:
        raise ConfigError(
            f"data.cache: cannot keep the encoded text in {folder}: {error.strerror or error}. "
            "Set data.cache to a directory you can write."
        ) from error
    return place


def open_tokenizer(named: Any) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: a tokenizer.json, or a directory with one.

    Raises:
        ConfigError: It is none, or knows no words.
    """
    whole = named and isinstance(named, str) and Path(named).expanduser().is_dir()
    file = find("data.tokenizer", str(Path(named, "tokenizer.json")) if whole else named, "a tokenizer.json")
    content = file.read_bytes()
    tokenizers = import_extra("tokenizers", "data.tokenizer: a text is encoded by the package tokenizers", "text")
    try:
        encoder = tokenizers.Tokenizer.from_buffer(content)
        undone = made_plain(encoder)
        words = encoder.get_vocab()
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(
            f"data.tokenizer: {file} is no tokenizer.json of Hugging Face's tokenizers: {error}."
        ) from error
    if not words:
        raise ConfigError(f"data.tokenizer: {file} has an empty vocabulary; train it first.")
    # Some numbers in between may stand for nothing.
    return Tokenizer(file, content, encoder, undone, max(words.values()) + 1)


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
