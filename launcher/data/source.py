"""What a data source gives: three splits, a task, and the shapes that a model and a loss need."""

import math
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor

from launcher.batching.splits import DatasetSplit, Split, TensorSplit, as_indices, first_infinite
from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data.splitting import hold_out

PRINTED = 1 << 20  # bytes of a split that its checksum covers at most, in rows at equal distances
DRAWN = 1 << 24  # samples of which some are drawn at random; of more they are taken at equal distances, in no time


@dataclass
class Data:
    """A data source: what to learn from, choose by and measure on.

    Args:
        name: Name of the source.
        task: `classification`: one of num_outputs classes; `multilabel`: which of num_outputs labels there are, each 0
            or 1; `regression`; or `language`: to predict the next token at each of t positions. A model then maps
            tokens [b, t] to scores [b, t, num_outputs], and every target counts.
        input_shape: Shape of one prepared sample; (t,) for a language.
        num_outputs: Classes, numbers per sample to predict, or tokens of the vocabulary.
        train: What the weights are fitted to.
        validation: What choices are made by, such as the best checkpoint.
        test: What is measured once, at the end.
        class_names: One name per class or label, in their order; None where unknown.
        target_mean: [d] float64, what was subtracted from the targets of a regression.
        target_std: [d] what they were then divided by: an error of 1 is this much in the user's own unit.
        input_mean: [d] float64, what was subtracted from each column of a table by the training split.
        input_std: [d] float64, what the column was then divided by.
        reader: How samples from elsewhere are read and prepared exactly as these: `_target_`, a function
            (path, **the other keys) -> Others, and its arguments, plain values. None: only its own splits are known.
        vocabulary: Tokens that the inputs are numbers of, where they are texts to tell something of.
        longest: Tokens of such a text at most, with what a batch is padded to.
        end_of_text: The token that ends a document, of a language whose samples may hold several; None: unknown.
        model_facts: What the task lets a model know in place of what `facts` says of the data.
        notes: Lines that who trains on it should read: what was guessed, left out, or looks strange.
    """

    name: str
    task: str
    input_shape: tuple[int, ...]
    num_outputs: int
    train: Split
    validation: Split
    test: Split
    class_names: list[str] | None = None
    target_mean: Tensor | None = None
    target_std: Tensor | None = None
    input_mean: Tensor | None = None
    input_std: Tensor | None = None
    reader: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    vocabulary: int | None = None
    longest: int | None = None
    end_of_text: int | None = None
    model_facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in self.splits().values():
            targets = split.targets
            if self.task == "classification" and targets is not None and not targets.is_floating_point():
                split.targets = targets.long()
            if self.task == "language" and split.prepare is None:
                split.prepare = as_indices

    def __str__(self) -> str:
        shape = "x".join(str(side) for side in self.input_shape)
        return (
            f"{self.name}: {self.task}, {shape} to {self.num_outputs}; {len(self.train)} to train, "
            f"{len(self.validation)} to validate, {len(self.test)} to test"
        )

    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def tokens(self) -> int | None:
        """Tokens of one sample; None where the task is no language."""
        return self.input_shape[0] if self.task == "language" else None

    @property
    def class_counts(self) -> Tensor:
        """Samples of each class in the training split: [num_outputs] int64.

        Raises:
            ConfigError: The task has no classes, or the labels are not known without reading every sample.
        """
        if self.task != "classification":
            raise ConfigError(f"data={self.name} is a {self.task} task and has no classes to count.")
        if self.train.targets is None:
            raise ConfigError(
                f"data={self.name} does not tell its labels, and its classes cannot be counted; give weights."
            )
        try:
            counts = torch.bincount(self.train.targets, minlength=self.num_outputs)
        except RuntimeError:  # negative ones, or no whole numbers
            counts = torch.empty(0)
        if len(counts) != self.num_outputs:
            raise ConfigError(
                f"data={self.name} has targets that are none of its {self.num_outputs} classes: give int64 labels [n] "
                f"of 0..{self.num_outputs - 1}. Numbers are a regression, classes that may occur together multilabel."
            )
        return counts

    def check(self, leaves_out: bool = False) -> None:
        """Look at all that is known without reading samples: inputs and targets in memory, labels, names.

        Args:
            leaves_out: Whether batches with NaN are left out of the training, and may be there.

        Raises:
            ConfigError: Something could not be trained on or measured.
        """
        if not isinstance(self.num_outputs, int) or self.num_outputs < 1:
            raise ConfigError(
                f"data={self.name}: its num_outputs is {self.num_outputs!r}; it must be the number of classes, labels "
                "or numbers that a model gives, at least 1."
            )
        if self.class_names is not None:
            name, often = Counter(self.class_names).most_common(1)[0]
            if often > 1 or len(self.class_names) != self.num_outputs:
                many = f"calls {often} classes {name!r}" if often > 1 else f"names {len(self.class_names)} classes"
                raise ConfigError(f"data={self.name} {many}; give each of its {self.num_outputs} classes its own name.")
        for name, split in self.splits().items():
            if len(split) == 0:
                raise ConfigError(f"data={self.name}: its {name} split is empty.")
            if isinstance(split, TensorSplit) and not split.mapped and not (leaves_out and name == "train"):
                row = first_infinite(split.inputs)
                if row is not None:
                    raise ConfigError(
                        f"data={self.name}: the inputs of sample {row} of its {name} split hold NaN or infinity; mend "
                        "the sample, or take it out."
                    )
            if split.targets is not None:
                self.check_targets(name, split.targets, len(split))

    def check_targets(self, name: str, targets: Tensor, samples: int) -> None:
        """Check that the targets of so many samples of a split are what the task takes, else a ConfigError."""
        place = f"data={self.name}: the targets of its {name} split"
        if len(targets) != samples:
            raise ConfigError(f"{place} are {len(targets)}, and its inputs {samples}.")
        if self.task == "classification":
            if targets.dim() != 1 or targets.is_floating_point():
                raise ConfigError(
                    f"{place} are {list(targets.shape)} {targets.dtype}; a classification takes one whole number per "
                    "sample, its class. Numbers are a regression, classes that may occur together multilabel."
                )
            strange = (targets < 0) | (targets >= self.num_outputs)
            words = f"none of its {self.num_outputs} classes, 0..{self.num_outputs - 1}; mend the label"
        elif self.task == "multilabel":
            strange = ((targets != 0) & (targets != 1)).flatten(1).any(1)
            words = "not 0 or 1 for each label; mend it"
        elif self.task == "regression" and targets.is_floating_point():
            strange = ~targets.flatten(1).isfinite().all(1) if targets.dim() > 1 else ~targets.isfinite()
            words = "no finite number; mend it"
        else:
            return
        if strange.any():
            row = int(strange.nonzero()[0, 0])
            raise ConfigError(
                f"{place} have {targets[row].tolist()} at sample {row}, which is {words}, or take the sample out."
            )

    def limit(self, samples: int) -> None:
        """Keep at most so many samples of each split, the same on every rank: of each class its share."""
        for name, split in self.splits().items():
            if samples < len(split):
                labels = split.targets if self.task == "classification" else None
                if len(split) > DRAWN:
                    index = torch.arange(samples) * (len(split) // samples)
                else:
                    index = hold_out(len(split), samples / len(split), 0, labels)[1]
                setattr(self, name, split.at(index))

    def move_to(self, device: torch.device) -> None:
        """Let data that lies in memory live on a GPU, where all of it fits into a quarter of what is free there.

        Batches are then gathered on the device, and no copy is waited for.
        """
        splits = [p for p in self.splits().values() if isinstance(p, TensorSplit) and not p.mapped]
        size = sum(p.inputs.nbytes + p.targets.nbytes for p in splits)
        if device.type != "cuda" or size > 0.25 * torch.cuda.mem_get_info(device)[0]:
            return
        for split in splits:
            split.inputs, split.targets = split.inputs.to(device), split.targets.to(device)

    def facts(self) -> dict[str, Any]:
        """What a model's or a loss's constructor may ask for by name.

        Tokens have no `input_shape`: what asks for that is made for numbers.
        """
        if self.tokens is not None:
            words = dict.fromkeys(("num_classes", "num_outputs", "out_features"), self.num_outputs)
            end = {} if self.end_of_text is None else {"end_of_text": self.end_of_text}
            return {"block": self.tokens, **words, **end, **self.model_facts}
        facts: dict[str, Any] = {
            "input_shape": self.input_shape,
            "in_features": math.prod(self.input_shape),
            "num_outputs": self.num_outputs,
            "out_features": self.num_outputs,
        }
        if self.task in ("classification", "multilabel"):
            facts["num_classes"] = self.num_outputs
        if self.vocabulary is not None:
            facts["vocab_size"] = self.vocabulary
            facts |= {} if self.longest is None else {"longest": self.longest}
            del facts["input_shape"], facts["in_features"]
        elif len(self.input_shape) == 3:
            facts["in_channels"] = self.input_shape[0]
        return facts | self.model_facts

    def record(self) -> dict[str, Any]:
        """What there is to know of it where the data is not at hand: plain values, data.json of a run.

        With a checksum of each split, which tells whether it still is the same data.
        """
        prepare, labels = getattr(self.test, "prepare", None), getattr(self.train, "targets", None)
        plain = asdict(prepare) if is_dataclass(prepare) and not isinstance(prepare, type) else {}
        counted = self.task == "classification" and labels is not None
        scales = {key: getattr(self, key) for key in ("target_mean", "target_std", "input_mean", "input_std")}
        return {
            "name": self.name,
            "task": self.task,
            "input_shape": list(self.input_shape),
            "num_outputs": self.num_outputs,
            "class_names": self.class_names,
            "class_counts": self.class_counts.tolist() if counted else None,
            **{key: None if numbers is None else numbers.tolist() for key, numbers in scales.items()},
            "prepare": {"name": type(prepare).__name__, **plain} if prepare is not None else None,
            "reader": self.reader,
            "facts": {key: list(fact) if isinstance(fact, tuple) else fact for key, fact in self.facts().items()},
            "parts": {name: _print_of(split) for name, split in self.splits().items()},
        }


@dataclass
class Others:
    """Samples from elsewhere, prepared as those of a training run."""

    split: Split  # what to read; without labels its targets mean nothing
    names: list[str]  # one per sample: the file of an image, the number of a row
    labelled: bool  # whether the true targets are there


def _print_of(split: Split) -> dict[str, Any]:
    """Samples of a split, and a checksum of what is in memory: all of it, or rows at equal distances."""
    tensors = [getattr(split, "inputs", None), getattr(split, "targets", None)]
    checksum = split.checksum if isinstance(split, DatasetSplit) else 0
    for tensor in tensors:
        if isinstance(tensor, Tensor) and len(tensor):
            rows = tensor[:: max(1, -(-tensor.nbytes // PRINTED))].cpu().contiguous()
            rows = rows.float() if rows.dtype == torch.float64 else rows  # as the model gets them
            checksum = zlib.crc32(rows.numpy().tobytes(), checksum)
    return {"samples": len(split), "checksum": checksum}


def build_data(settings: Mapping[str, Any], leaves_out: bool = False, limit: int = 0) -> Data:
    """Build the data source that settings name.

    Args:
        settings: The group.
        leaves_out: As for `Data.check`.
        limit: Samples that are kept of each split at most; 0: all.

    Raises:
        ConfigError: As for `build`; or what `_target_` names gives something else.
    """
    data = build("data", settings)
    if not isinstance(data, Data):
        raise ConfigError(
            f"data._target_: {settings['_target_']} gives a {type(data).__name__}, not a launcher.data.Data."
        )
    data.check(leaves_out)
    if limit:
        data.limit(limit)
    return data
