"""A trained model in Python: the weights of a checkpoint, the preparation of samples, and what its outputs mean."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from launcher.batching.splits import Split, TensorSplit, as_indices, suit
from launcher.batching.stream import in_order
from launcher.core.errors import ConfigError
from launcher.core.files import number
from launcher.data import images
from launcher.data.source import Others
from launcher.data.table_statistics import standardise
from launcher.data.text import open_tokenizer
from launcher.run import saved
from launcher.tasks.build import is_supervised
from launcher.tasks.mirrored import Mirrored
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import tensor_of

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load(run_dir: str | os.PathLike[str], checkpoint: str | int = "auto", device: str = "cpu") -> "TrainedModel":
    """See `launcher.load`."""
    if not isinstance(checkpoint, int) and checkpoint not in ("auto", "best", "last"):
        raise ConfigError(f"checkpoint={checkpoint}: must be auto, best, last or a step.")
    if (here := os.getcwd()) not in sys.path:  # where the commands find a person's own modules, too
        sys.path.append(here)
    path, run = saved.open_run(os.fspath(run_dir))
    chosen = saved.choose_checkpoint(path, checkpoint)
    record = saved.read_record(path, run)
    model = TrainedModel(saved.load_model(run, record["facts"], chosen.path), run, record, chosen)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"device={device}: cannot be used here ({what}). Use cpu, or cuda where there is a GPU."
        ) from error


def outputs_in_batches(
    model: nn.Module, batches: Iterable[tuple[Any, Tensor]], autocast: Callable[[], AbstractContextManager[Any]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The outputs of a model for batches, float32, and the targets, both on the host.

    Args:
        model: In evaluation mode.
        batches: Inputs and targets [n], on the device of the model.
        autocast: Makes the context in which the model runs.
    """
    for inputs, targets in batches:
        with torch.no_grad(), autocast():
            outputs = tensor_of(model(inputs))
        yield outputs.float().cpu(), targets.cpu()


class TrainedModel(nn.Module):
    """The model of a run, with the preparation of its samples; called, it maps prepared inputs to raw outputs.

    Example:
        >>> model = launcher.load("outputs/2026-01-31/12-00-00")
        >>> model.predict("new.csv")["predicted"]
        >>> scores = model(model.preprocess("new.csv"))

    Attributes:
        model: The model itself, in evaluation mode: the moving average of the weights where the run kept one.
        settings: Of the run.
        record: data.json of the run.
        checkpoint: What was loaded; its text is such as `step_00000042 (best)`.
        class_names: Of the classes or labels, in the order of the outputs; None where unknown, or of a regression.
    """

    def __init__(
        self, model: nn.Module, run: Mapping[str, Any], record: Mapping[str, Any], checkpoint: saved.Chosen
    ) -> None:
        super().__init__()
        self.model, self.settings, self.record, self.checkpoint = model, run, record, checkpoint
        self.class_names: list[str] | None = record["class_names"]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The raw outputs of the model for prepared inputs, such as [n, num_outputs]."""
        return self.model(*inputs, **named)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((one.device for one in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def preprocess(self, samples: Any) -> Any:
        """Samples as the model takes them, prepared by the numbers of the training run, on the device of the model.

        Args:
            samples: A file, a folder or a list of images, as `input` of `launcher predict`; a pandas DataFrame with the
                columns of training; for a language a text, and for a column of texts a list of them. Or an array or
                tensor [n, ...] of what the data source reads before it prepares it: columns in the order of training,
                images as they are in memory, tokens.

        Returns:
            [n, ...] floating-point; tokens [n, t] int64; of a column of texts a dict of tokens and their mask.

        Raises:
            ConfigError: They are not what the run takes, or cannot be read.
        """
        split = self._split(samples)
        with saved.reading():
            return next(in_order(split, 0, 1, len(split), self.device, 0))[0]

    def predict(self, samples: Any, batch_size: int = 512) -> dict[str, np.ndarray]:
        """What the model says of samples, as `launcher predict` writes it, with the run's precision and flips.

        Args:
            samples: As for `preprocess`.
            batch_size: Samples at once; the last bits may depend on it.

        Returns:
            [n] by the name of a column: of classes `predicted` and `p_NAME` for each; of labels both for each; of
            numbers `predicted`, in the unit that they were given in. `pandas.DataFrame` takes it.

        Raises:
            ConfigError: As for `preprocess`; or the run is of a language, of which there is no table.
        """
        split = self._split(samples)
        data = saved.data_of_others(self.record, Others(split, [], False))
        meaning = Outputs.of(data, self.settings["loss"])
        if meaning.dense or not is_supervised(self.settings.get("task")):
            raise ConfigError(f"predict: predictions of the task {data.task} have no table; call the model instead.")
        model = Mirrored(self.model) if self.settings["test_time_flip"] else self.model
        batches = in_order(split, 0, 1, batch_size, self.device, 0)
        with saved.reading():
            outputs = torch.cat([found for found, _ in outputs_in_batches(model, batches, self._autocast)])
        meaning = meaning.fitted(outputs, len(split))
        return meaning.columns(meaning.scores(outputs), None, True)

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run; fp16, which no CPU has, is float32 there."""
        kind = PRECISIONS.get(self.settings["mixed_precision"])
        if kind is None or (kind is torch.float16 and self.device.type == "cpu"):
            return nullcontext()
        return torch.autocast(self.device.type, kind)

    def _split(self, samples: Any) -> Split:
        """Samples to be read and prepared; see `preprocess`."""
        split = self._read(samples)
        if not len(split):
            raise ConfigError("samples: there are none.")
        suit(self.model, split)
        return split

    def _read(self, samples: Any) -> Split:
        if self.record["task"] == "language" and isinstance(samples, str):
            return self._read_array(torch.tensor(tokens_of(samples, self.settings["data"].get("tokenizer"))))
        if "max_tokens" in (self.record["reader"] or {}):
            return self._read_texts(samples)
        if "vocab_size" in self.record["facts"]:
            raise ConfigError(
                f"samples: data={self.record['name']} gives the model padded tokens and a mask in a dict, which is not "
                "made of other samples yet. Make that dict, and call the model itself."
            )
        if hasattr(samples, "to_csv"):
            return self._read_frame(samples)
        paths = isinstance(samples, list | tuple) and all(isinstance(one, str | os.PathLike) for one in samples)
        if paths or isinstance(samples, str | os.PathLike):
            named = [os.fspath(one) for one in samples] if paths else os.fspath(samples)
            return saved.read_others(self.record, named).split
        return self._read_array(torch.as_tensor(samples))

    def _read_texts(self, samples: Any) -> Split:
        """Texts in a file, in a DataFrame under the name of the column of training, or in a list."""
        column = self.record["reader"]["column"]
        if hasattr(samples, "to_csv"):
            if column not in samples:
                raise ConfigError(f"samples: they have no column {column!r}, in which the run has its texts.")
            samples = samples[column].tolist()
        if isinstance(samples, list | tuple):
            samples = list(samples)
            if strange := [row for row, one in enumerate(samples) if not isinstance(one, str)]:
                raise ConfigError(f"samples: number {strange[0]} is {samples[strange[0]]!r}, no text.")
        elif isinstance(samples, str | os.PathLike):
            samples = os.fspath(samples)
            if not os.path.exists(samples):
                raise ConfigError(
                    f"samples={samples}: there is no such file. To give a text itself, give a list: [TEXT]."
                )
        else:
            raise ConfigError(f"samples: a {type(samples).__name__}; give a file, a list of texts or a DataFrame.")
        return saved.read_others(self.record, samples).split

    def _read_frame(self, frame: Any) -> Split:
        """A DataFrame, by way of a file: what the run's reader makes of it is what it makes of a file."""
        reader = self.record["reader"] or {}
        if "columns" not in reader:
            raise ConfigError(f"samples: data={self.record['name']} takes no DataFrame; give an array.")
        with tempfile.TemporaryDirectory() as place:
            file = os.path.join(place, "samples.csv")
            how = {"sep": reader.get("delimiter", ","), "decimal": reader.get("decimal", ".")}
            frame.to_csv(file, index=False, header=reader.get("header") is not False, **how)
            return saved.read_others(self.record, file).split

    def _read_array(self, raw: Tensor) -> Split:
        """Raw samples [n, ...], prepared by the numbers in data.json."""
        record, shape = self.record, tuple(self.record["input_shape"])
        if record["task"] == "language":
            return _of_array(raw.reshape(1, -1) if raw.dim() == 1 else raw, as_indices)
        if tuple(raw.shape[1:]) != shape:
            raise ConfigError(f"samples: their shape is {list(raw.shape)}, not [n, {', '.join(map(str, shape))}].")
        if (prepare := record["prepare"]) is not None:
            kind = {one.__name__: one for one in (images.Standardise, images.StandardiseChannels)}.get(prepare["name"])
            if kind is None:
                raise ConfigError(
                    f"samples: data={record['name']} prepares its samples by code of its own, {prepare['name']}, "
                    "which data.json does not hold. Prepare them by it, and call the model itself."
                )
            return _of_array(raw, kind(**{name: value for name, value in prepare.items() if name != "name"}))
        if record["input_mean"] is not None:
            mean, std = (np.array([number(one) for one in record[f"input_{name}"]]) for name in ("mean", "std"))
            raw = torch.from_numpy(standardise(raw.cpu().double().numpy(), mean, std)).float()
        return _of_array(raw)


def tokens_of(text: str, tokenizer: str | None) -> list[int]:
    """The tokens of a text as `data=text` has them: its bytes, or by a tokenizer.json."""
    if tokenizer is None:
        return list(text.encode())
    ids: list[int] = open_tokenizer(tokenizer).encode([text], "the text")[0].ids
    return ids


def _of_array(raw: Tensor, prepare: Any = None) -> TensorSplit:
    return TensorSplit(raw, torch.zeros(len(raw), dtype=torch.int64), prepare)
