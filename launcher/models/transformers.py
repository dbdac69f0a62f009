"""Any model of Hugging Face's transformers (Wolf et al. 2020), from a directory or from nothing; nothing is downloaded.

Tokens [b, t] are the first argument of their forwards, `input_ids`, and images `pixel_values`; samples that are dicts
are given by name (launcher/models/keywords.py). What they give has the scores in `logits`.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.models.weights import shown

AUTO = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
}
FILES = ["*.json", "*.safetensors"]  # what is wanted of a repository; *.py beside them where code is trusted
PADDED = 1024  # rows of an embedding at most that stand for no token: sizes are rounded up for speed


def create(
    num_outputs: int,
    auto: str,
    name: str | None,
    type: str | None,
    weights: bool,
    config: Mapping[str, Any],
    download: bool,
    trust_remote_code: bool,
    block: int | None = None,
    vocab_size: int | None = None,
    longest: int | None = None,
    kept_config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model of transformers; the settings are those of conf/model/transformers.yaml.

    Args:
        num_outputs: Classes, labels or numbers; of a language, tokens.
        auto: A key of AUTO, or a class of transformers.
        name: Directory, or name in the cache.
        type: A `model_type` of transformers.
        weights: Whether the model begins with those beside the configuration.
        config: Changes of the configuration.
        download: Whether what is not there may be downloaded.
        trust_remote_code: Whether code beside the weights is run.
        block: Of a language, tokens that the model sees at once.
        vocab_size: Of texts to tell something of, tokens that they are numbers of.
        longest: Of such texts, tokens of one at most, with padding.
        kept_config: The configuration of an earlier start of the run: no file is needed.

    Returns:
        The model, in float32, with attributes beside its own: `kept_config`, plain values; `begun_with`, a line that
        says what became of the weights; and where there were some `read_names`, of the tensors that took them.

    Raises:
        ConfigError: A setting is wrong, or something is not there.
    """
    flags = {"weights": weights, "download": download, "trust_remote_code": trust_remote_code}
    if wrong := [f"model.{setting}={value}" for setting, value in flags.items() if not isinstance(value, bool)]:
        raise ConfigError(f"{wrong[0]}: must be true or false.")
    library = _library()
    kind = _class(library, auto)
    if (name is None) == (type is None):
        raise ConfigError("model.name, model.type: give one of them: model.name=DIRECTORY of one, or model.type=bert.")
    needed = name is not None and (kept_config is None or trust_remote_code)
    place = find(str(name), download, trust_remote_code) if needed else None
    known = _config(library, place, type, kept_config, trust_remote_code)
    if kept_config is None:
        _change(known, config)
        vocabulary = num_outputs if vocab_size is None and block is not None else vocab_size
        new = name is None or not weights
        _fit_vocabulary(known, vocabulary, new and "vocab_size" not in config, "Classification" not in kind.__name__)
        called = getattr(known, "attribute_map", {}).get("max_position_embeddings")  # as GPT-2 does: n_positions
        free = new and not {"max_position_embeddings", called} & {*config}
        _fit(known, kind.__name__, num_outputs, block, free)
        if longest is not None and free and getattr(known, "max_position_embeddings", longest) < longest + 2:
            known.max_position_embeddings = longest + 1 + (known.pad_token_id or 0)  # RoBERTa's begin behind that
    if hasattr(known, "use_cache"):
        known.use_cache = False  # of keys and values, for generating token by token
    model, line = _make(kind, place if weights else None, known, {"trust_remote_code": trust_remote_code})
    if kept_config is None and longest is not None:
        _check_positions(model, longest)
    if kept_config is None and "Classification" not in kind.__name__ and block is not None:
        line += _cut_vocabulary(model, num_outputs)
    trusted = f" (trusted: code beside the weights in {place} runs with your rights)" if trust_remote_code else ""
    model.begun_with = (line + trusted).strip()
    model.kept_config = json.loads(model.config.to_json_string(use_diff=False))
    return model


def find(name: str, download: bool, code: bool) -> Path:
    """The directory of a model: as named, or in the cache of Hugging Face.

    Raises:
        ConfigError: It is in neither, or could not be downloaded.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise ConfigError(f"model.name={name}: this directory has no config.json. Name one with a model in it.")
        return place
    hub = import_extra("huggingface_hub", "model=transformers needs huggingface_hub", "transformers")
    try:
        found = hub.snapshot_download(
            name, local_files_only=not download, allow_patterns=[*FILES, *(["*.py"] if code else [])]
        )
    except Exception as error:  # no such name, no network, no such place in the cache
        how = "Download it with model.download=true, or name" if not download else "Name"
        said = "" if not download else f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ConfigError(
            f"model.name={name}: there is no such directory, and no such model in the cache of Hugging Face{said}. "
            f"{how} a directory with config.json and .safetensors files."
        ) from error
    if not (Path(found) / "config.json").is_file():
        raise ConfigError(f"model.name={name}: what is in the cache has no config.json. Set model.download=true.")
    return Path(found)


def _has_values() -> bool:
    """Whether a tensor that is made here holds numbers: a rank without weights and a plan of memory want none."""
    one = torch.empty(0)
    return type(one) is Tensor and not one.is_meta


def _library() -> Any:
    """The package, silent: what it would warn of is in `begun_with`."""
    library = import_extra("transformers", "model=transformers needs the package transformers", "transformers")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def _class(library: Any, auto: str) -> Any:
    """The class that makes the model."""
    name = AUTO.get(auto, auto)
    if not name.startswith("AutoModel") or not hasattr(library, name):
        near = difflib.get_close_matches(auto, [*AUTO, *(n for n in dir(library) if n.startswith("AutoModelFor"))], 3)
        raise ConfigError(
            f"model.auto={auto}: must be one of {', '.join(AUTO)}, or a class of transformers whose name begins with "
            f"AutoModel.{f' The nearest: {chr(44).join(near)}.' if near else ''}"
        )
    return getattr(library, name)


def _config(library: Any, place: Path | None, type: str | None, kept: Any, code: bool) -> Any:
    """The configuration, as it was kept, as the directory has it, or as transformers has it for a type."""
    if kept is not None and not code:
        plain = {key: value for key, value in kept.items() if key != "transformers_version"}
        return library.AutoConfig.for_model(**plain)
    if place is None:
        if type not in library.CONFIG_MAPPING:
            near = difflib.get_close_matches(str(type), list(library.CONFIG_MAPPING), 3)
            raise ConfigError(
                f"model.type={type}: transformers has no such type of model. "
                f"{f'The nearest: {chr(44).join(near)}.' if near else 'Such as bert, gpt2 or llama.'}"
            )
        return library.AutoConfig.for_model(type)
    try:
        return library.AutoConfig.from_pretrained(place, trust_remote_code=code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        needs = "auto_map" in (place / "config.json").read_text(errors="replace")
        how = "Set model.trust_remote_code=true if you trust its code." if needs and not code else "Name another."
        raise ConfigError(f"model.name={place}: its config.json cannot be taken ({said}). {how}") from error


def _change(known: Any, changes: Mapping[str, Any]) -> None:
    """Change a configuration, of names that it has."""
    for key, value in changes.items():
        if not hasattr(known, key):
            near = difflib.get_close_matches(key, list(known.to_dict()), 3)
            raise ConfigError(
                f"model.config.{key}: the configuration of {known.model_type} has no {key}. "
                f"The nearest: {', '.join(near) or 'none'}; all are at huggingface.co/docs/transformers."
            )
        setattr(known, key, value)


def _fit(known: Any, kind: str, outputs: int, block: int | None, free: bool) -> None:
    """Tell a configuration how many outputs and positions the data need.

    Args:
        known: The configuration.
        kind: Name of the class.
        outputs: As for `create`.
        block: As for `create`.
        free: Whether neither weights nor a person have set the positions.

    Raises:
        ConfigError: The model sees fewer tokens at once than a sample has.
    """
    longest = getattr(known, "max_position_embeddings", None)
    if block is not None and isinstance(longest, int) and longest < block:
        if not free:
            raise ConfigError(
                f"data.block={block}: the model sees at most {longest} tokens at once "
                f"(max_position_embeddings). Set data.block={longest}, or less."
            )
        known.max_position_embeddings = block
    if "Classification" in kind:
        known.num_labels = outputs
        if known.pad_token_id is None:  # by which models that predict the next token find the last one of a sample
            ends = getattr(known, "eos_token_id", None)
            known.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0


def _check_positions(model: nn.Module, longest: int) -> None:
    """Refuse texts that are longer than a table of positions, if the model has one: by rotations none is too long.

    Raises:
        ConfigError: They are.
    """
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("position" in leaf or leaf == "wpe"):
            continue
        known: Any = model.config
        room = min(module.num_embeddings, getattr(known, "max_position_embeddings", module.num_embeddings))
        room -= 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's first positions are not used
        if longest > room:
            raise ConfigError(
                f"data.max_tokens: texts may have {longest} tokens, with padding, and the model sees at most {room} at "
                f"once (max_position_embeddings). Set data.max_tokens={max(1, room // 8 * 8)}, or less."
            )


def _fit_vocabulary(known: Any, vocabulary: int | None, free: bool, exactly: bool) -> None:
    """Tell a configuration how many tokens there are, or compare it with them.

    Args:
        known: The configuration.
        vocabulary: Tokens of the data; None where nobody knows.
        free: Whether neither weights nor a person have set it.
        exactly: Whether there is an output for each token.

    Raises:
        ConfigError: The data have others.
    """
    if vocabulary is None or not hasattr(known.get_text_config(), "vocab_size"):
        return
    if free:
        known.get_text_config().vocab_size = vocabulary
        for special in ("bos_token_id", "eos_token_id", "pad_token_id"):  # of another vocabulary
            if (getattr(known, special, None) or 0) >= vocabulary:
                setattr(known, special, None)
    have = known.get_text_config().vocab_size
    if have < vocabulary or (exactly and have > vocabulary + PADDED):
        raise ConfigError(
            f"model: its vocabulary has {have} tokens, and that of the data {vocabulary}. Use the tokenizer that "
            "belongs to the model (data.tokenizer), or begin with random weights (model.weights=false)."
        )


def _make(kind: Any, place: Path | None, known: Any, trusted: Mapping[str, Any]) -> tuple[Any, str]:
    """A model with the weights in a directory, or random ones; and a line on them."""
    try:
        if place is None or not _has_values():
            return kind.from_config(known, **trusted).float(), ""
        return _load(kind, place, known, trusted)
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model.auto={kind.__name__}: {' '.join(str(error).split())[:300]}") from error


def _cut_vocabulary(model: Any, outputs: int) -> str:
    """Leave out the rows of an embedding that stand for no token; gives what to say of it."""
    have = model.config.get_text_config().vocab_size
    if have == outputs:
        return ""
    model.resize_token_embeddings(outputs)
    return f"; {have - outputs} rows of the vocabulary that the data do not have are left out"


def _load(kind: Any, place: Path, known: Any, trusted: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """A model with the weights in a directory, float32, and a line on what fitted."""
    if not any(place.glob("*.safetensors")):
        others = sorted(file.name for file in place.glob("*.bin"))
        raise ConfigError(
            f"model.name={place}: it has no .safetensors file"
            f"{f', and nothing in {others[0]} is executed' if others else ''}. "
            "Save the model with safe_serialization, or begin with random weights (model.weights=false)."
        )
    try:
        model, said = kind.from_pretrained(
            place, config=known, use_safetensors=True, local_files_only=True, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True, **trusted,
        )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"model.name={place}: {' '.join(str(error).split())[:300]}") from error
    absent, others = (sorted(said[f"{what}_keys"]) for what in ("missing", "unexpected"))
    reshaped = sorted(one[0] if isinstance(one, tuple) else one for one in said["mismatched_keys"])
    model.read_names = frozenset(model.state_dict()) - {*absent, *reshaped}
    whole = len(model.state_dict())
    parts = [f"{whole - len(absent) - len(reshaped)} of {whole} tensors from {place}"]
    for what, names in (("missing", absent), ("unexpected", others), ("of another shape", reshaped)):
        if names:
            parts.append(f"{len(names)} {what}: {shown(names)}")
    return model, "; ".join(parts)
