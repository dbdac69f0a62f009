"""The base of an adapted model: weights that were read from a file and stay, which checkpoints then can leave out."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher.core.errors import ConfigError
from launcher.training.finetune import sources_of


@dataclass(frozen=True)
class FrozenBase:
    """What the checkpoints of a run leave out; nothing by default."""

    names: frozenset[str] = frozenset()  # of parameters, as the state dict of the adapted model has them
    digest: str | None = None  # SHA-256 of their values; None where this process was not to look at them
    source: str = ""  # the setting that names their file, and its value

    def check(self, digest: str | None, where: object) -> None:
        """Compare with the base that a checkpoint was saved beside.

        Args:
            digest: What the checkpoint says of it; None where it holds all weights.
            where: The checkpoint or its run, for the message.

        Raises:
            ConfigError: It is another one.
        """
        if self.digest is not None and self.digest != digest:
            raise ConfigError(
                f"adapter.only: the weights of {self.source} are not those that {where} was trained beside, of which "
                "it holds the adapter alone. Put back what was there then."
            )


NO_BASE = FrozenBase()


def leaves_out(adapter: Mapping[str, Any] | None) -> bool:
    """Whether the checkpoints of a run with these settings of conf/adapter hold the adapter alone."""
    return adapter is not None and bool(adapter.get("only", False))


def source_of(settings: Mapping[str, Any]) -> str:
    """The setting of a run that names the file of the base, and its value."""
    sources = {**sources_of(settings), "model.name": settings["model"].get("name")}
    return next((f"{setting}={value}" for setting, value in sources.items() if value is not None), "model")


def find_base(model: nn.Module, settings: Mapping[str, Any], with_digest: bool) -> FrozenBase:
    """The parameters of an adapted model that are not trained and were read from a file, where no checkpoint has them.

    Those that the file did not have, such as a frozen layer with initial values, are none of them: a checkpoint holds
    them. So it does all buffers, such as the statistics of a normalisation, which training changes.

    Args:
        model: With its adapters, frozen as it will be trained. Without memory, as on most ranks of a sharded run, it
            gives nothing: rank 0 tells the others.
        settings: Of the run.
        with_digest: Whether to read all values once: half a second for each GB.

    Raises:
        ConfigError: No parameter is one of them.
    """
    if not leaves_out(settings["adapter"]):
        return NO_BASE
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if any(parameter.is_meta for parameter in parameters.values()):
        return NO_BASE
    read = frozenset(getattr(model, "read_names", ()))
    found = {id(one) for name, one in parameters.items() if name.replace(".base_layer.", ".") in read}
    names = frozenset(name for name, one in parameters.items() if id(one) in found and not one.requires_grad)
    if not names:
        raise ConfigError(
            "adapter.only=true: a checkpoint without the base needs a base that can be read again, and this one is not "
            "read from a file: it is random numbers, which another version of torch draws otherwise. Name weights by "
            "init_from, model.name or model.checkpoint, or use adapter.only=false."
        )
    return FrozenBase(names, digest_of(model, names) if with_digest else None, source_of(settings))


def digest_of(model: nn.Module, names: Iterable[str]) -> str:
    """SHA-256 of parameters: their names, types, shapes and bytes."""
    parameters, whole = dict(model.named_parameters(remove_duplicate=False)), hashlib.sha256()
    seen: set[int] = set()
    for name in sorted(names):
        one = parameters[name]
        whole.update(f"{name} {one.dtype} {list(one.shape)}\n".encode())
        if id(one) not in seen:  # a tied one has two names
            whole.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        seen.add(id(one))
    return whole.hexdigest()
