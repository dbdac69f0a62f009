"""Building the loss that the settings name, as one that fits the data's task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.batching.splits import TensorSplit
from launcher.config.components import build, locate
from launcher.core.errors import ConfigError
from launcher.losses.per_sample import CLASSIFYING, LOGISTIC, REGRESSING, PerSample

if TYPE_CHECKING:
    from launcher.data.source import Data

# What loss=auto is, by the task of the data.
AUTO: dict[str, type[nn.Module]] = {
    "classification": nn.CrossEntropyLoss,
    "multilabel": nn.BCEWithLogitsLoss,
    "regression": nn.HuberLoss,  # with which SGD at the default rate does not diverge on rows far from the others
    "language": nn.CrossEntropyLoss,
    "segmentation": nn.CrossEntropyLoss,
}
OF_TASK = "launcher.losses.loss.of_task"
FITTING = {
    "classification": "cross_entropy, multi_margin, focal, binary_cross_entropy",
    "multilabel": "binary_cross_entropy (mse, l1 and huber with data.task=regression)",
    "regression": "mse, l1, huber (binary_cross_entropy for targets between 0 and 1)",
    "language": "cross_entropy, focal, multi_margin",
    "segmentation": "cross_entropy, focal",
}


def of_task(label_smoothing: float = 0.0, weight: Any = None) -> nn.Module:
    """The usual loss of the data's task: loss=auto.

    Cross-entropy for classes, tokens and pixels, whose arguments these are; binary cross-entropy for labels; Huber's
    loss for numbers.
    """
    raise NotImplementedError  # only build_loss, which knows the data, can tell


def is_of_task(settings: Mapping[str, Any]) -> bool:
    """Whether settings leave the loss to the task."""
    return settings.get("_target_") == OF_TASK


def resolve(settings: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Settings of a loss; where they leave it to the task, those of its loss.

    Raises:
        ConfigError: An argument of cross-entropy is set, and the task has another loss.
    """
    if not is_of_task(settings):
        return settings
    kind = AUTO.get(task, nn.CrossEntropyLoss)
    unset = {"label_smoothing": (0, None), "weight": (None,)}
    given = {k: v for k, v in settings.items() if k != "_target_" and v not in unset.get(k, ())}
    if given and kind is not nn.CrossEntropyLoss:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"loss.{name} is {value!r}: the loss of a {task} task is {kind.__name__}, which has no {name}. Leave it "
            f"out, or pick a loss that fits: {FITTING[task]}."
        )
    return {"_target_": f"torch.nn.{kind.__name__}", **given}


def kind_of(settings: Mapping[str, Any]) -> type:
    """The class of the loss that settings name; `object` where it is no class."""
    found = locate(str(settings["_target_"]), "loss") if settings.get("_target_") else None
    return found if isinstance(found, type) else object


def gives(settings: Mapping[str, Any], task: str) -> str:
    """What a loss takes from a model: see `Outputs.given`."""
    kind = kind_of(resolve(settings, task))
    return "probabilities" if issubclass(kind, nn.BCELoss) else "logits" if issubclass(kind, LOGISTIC) else "scores"


def fit_task(data: "Data", settings: Mapping[str, Any]) -> "Data":
    """The data as their loss understands them: numbers of nothing but 0 and 1, with a sigmoid for each, are labels."""
    targets = [split.targets for split in data.splits().values()]
    if data.task != "regression" or gives(settings, data.task) == "scores":
        return data
    if not all(one is not None and bool(torch.isin(one, torch.tensor([0, 1])).all()) for one in targets):
        return data
    return replace(data, task="multilabel", notes=[*data.notes, "targets of 0 and 1: a multilabel task"])


def build_loss(settings: Mapping[str, Any], data: "Data") -> PerSample:
    """Build the loss that conf/loss describes.

    `weight` (of the losses for classes) and `alpha` (of FocalLoss) may be null, a list of k numbers, or "balanced":
    n / (k * count of the class).

    Raises:
        ConfigError: The loss does not fit the task, or a weight, count or argument is wrong.
    """
    settings = resolve(settings, data.task)
    kind = kind_of(settings)
    unfit = {
        "classification": REGRESSING,
        "multilabel": (*CLASSIFYING, *REGRESSING),
        "regression": CLASSIFYING,
        "language": (*REGRESSING, nn.BCEWithLogitsLoss),
        "segmentation": (*REGRESSING, nn.BCEWithLogitsLoss, nn.MultiMarginLoss),
    }
    if issubclass(kind, unfit.get(data.task, ())):
        other = {"classification": "regression", "regression": "classification"}.get(data.task)
        hint = (
            f" Or set data.task={other}, where that is meant."
            if other and data.name in ("table", "huggingface")
            else ""
        )
        words = f"does not fit data of the task {data.task}. Losses that do: {FITTING[data.task]}.{hint}"
        raise ConfigError(f"loss: {kind.__name__} {words}")
    if settings.get("reduction") not in (None, "mean", "none"):
        raise ConfigError(
            f"loss.reduction is {settings['reduction']!r}: leave it out; the mean is over the global batch."
        )
    if issubclass(kind, LOGISTIC) and data.task == "regression":
        _check_probabilities(data, kind.__name__)
    fixed, facts = dict(settings), data.facts()
    for key in ("weight", "alpha", "pos_weight"):
        given = fixed.get(key)
        if given is not None and data.task == "language":
            raise ConfigError(f"loss.{key} is {given!r}: the tokens of a language all weigh the same; leave it null.")
        if given == "balanced" and key != "pos_weight":
            facts[key] = balanced_weights(key, data)
        elif given is not None and issubclass(kind, (*CLASSIFYING, nn.BCEWithLogitsLoss)):
            # A single logit for two classes has a single weight.
            alone = key == "pos_weight" and data.num_outputs == 2 and hasattr(given, "__len__") and len(given) == 1
            facts[key] = _listed_weights(key, given, 1 if alone else data.num_outputs)
        if key in facts:
            fixed.pop(key)
    loss = build("loss", fixed, **facts)
    if not isinstance(loss, nn.Module):
        target = settings["_target_"]
        raise ConfigError(f"loss._target_: {target!r} gives a {type(loss).__name__}, not a torch.nn.Module.")
    if isinstance(loss, (*CLASSIFYING, *REGRESSING)):
        _try_out(loss, settings, data)
    return PerSample(loss, data.task, _may_be_padded(data))


def _may_be_padded(data: "Data") -> bool:
    """Whether some target may be none, as far as it is known without reading: of a text in one file all are tokens."""
    for split in data.splits().values():
        if not isinstance(split, TensorSplit) or (not split.mapped and bool((split.targets < 0).any())):
            return True
    return False


def balanced_weights(key: str, data: "Data") -> Tensor:
    """Weights [k] float32 that let every class count the same over the training split: n / (k * count)."""
    if data.task != "classification":
        raise ConfigError(f"loss.{key} is 'balanced', but data of the task {data.task} has no classes to balance.")
    counts = data.class_counts.double()
    if (counts <= 0).any():
        absent = torch.nonzero(counts <= 0).flatten().tolist()
        raise ConfigError(
            f"loss.{key} is 'balanced', but the training split has no sample of class "
            f"{', '.join(map(str, absent))} (counts: {counts.long().tolist()}). "
            f"Give a list of {len(counts)} weights instead."
        )
    return (counts.sum() / (len(counts) * counts)).float()


def _listed_weights(key: str, given: Any, num_outputs: int) -> Tensor:
    """Weights [num_outputs] float32 from a list of as many numbers >= 0, else a ConfigError that names the setting."""
    right = f"null, a list of {num_outputs} numbers >= 0" + ("" if key == "pos_weight" else ", or balanced")
    if isinstance(given, str | int | float):
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.")
    try:
        weights = torch.tensor([float(w) for w in given], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.") from error
    if len(weights) != num_outputs:
        raise ConfigError(f"loss.{key} has {len(weights)} numbers, the data has {num_outputs} outputs: give {right}.")
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ConfigError(f"loss.{key} is {weights.tolist()}: give {right}, finite and not all 0.")
    return weights


def _try_out(loss: nn.Module, settings: Mapping[str, Any], data: "Data") -> None:
    """Compute the loss once: torch checks delta or label_smoothing only then."""
    outputs = torch.zeros(2, data.num_outputs)
    targets = outputs if data.task == "regression" else torch.zeros(2, dtype=torch.int64)
    try:
        loss(outputs, targets)
    except (RuntimeError, ValueError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in settings.items() if k != "_target_")
        raise ConfigError(f"loss: {type(loss).__name__} refuses ({given}): {error}") from error


def _check_probabilities(data: "Data", name: str) -> None:
    for split in data.splits().values():
        if split.targets is not None and len(split.targets):
            low, high = float(split.targets.min()), float(split.targets.max())
            if low < 0 or high > 1:
                raise ConfigError(
                    f"loss: {name} needs targets between 0 and 1, these lie in {low:g}..{high:g}. Losses that fit: "
                    f"{FITTING['regression']}. Vectors of 0 and 1 are data.task=multilabel."
                )
