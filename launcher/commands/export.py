"""A trained model in a form that other programs load, compared with the original before it counts; and its card.

    launcher export run_dir=outputs/2026-01-31/12-00-00 format=onnx output=model
    launcher export run_dir=outputs/2026-01-31/12-00-00 format=[safetensors,torch_export]

Each takes prepared inputs [n, ...] (metadata.json says how they are prepared), of any n, or a dict of such where the
run's samples are dicts, and gives outputs [n, num_outputs]. A directory is written whole or not at all.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from launcher.commands.command import Subject, alone, of_settings, open_subject
from launcher.commands.formats import WRITERS, Loaded, need_onnx
from launcher.config.places import check_writable
from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.distributed.threads import choose_threads
from launcher.run import provenance, saved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.tasks.outputs import Outputs

Batches = Callable[[], Iterable[tuple[Any, "Tensor"]]]  # all samples, in batches, from the first on


@of_settings("export")
def command(settings: dict[str, Any]) -> int:
    """Write a model and its card; a ConfigError for a model that cannot be exported."""
    path, run = saved.open_run(settings["run_dir"])
    formats = [settings["format"]] if isinstance(settings["format"], str) else list(dict.fromkeys(settings["format"]))
    output = Path(settings["output"]).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"output={settings['output']}: is there already, with something in it. Name another directory."
        )
    check_writable(output, "output")
    ranks = alone("export")
    if "onnx" in formats:
        need_onnx()
    subject = open_subject(path, run, settings)

    import torch

    from launcher.batching.splits import suit
    from launcher.batching.stream import in_order
    from launcher.batching.workers import choose_workers
    from launcher.models.build import without_file
    from launcher.run import card

    model = _load(subject)
    suit(model, subject.split)
    torch.set_num_threads(choose_threads(settings["threads"], ranks))
    size, cpu = settings["batch_size"], torch.device("cpu")
    workers = choose_workers(settings["num_workers"], subject.split, size)
    batches = partial(in_order, subject.split, 0, 1, size, cpu, workers)
    example = _example(in_order(subject.split, 0, 1, 2, cpu, min(workers, 1)))
    with _whole(output) as making:
        files, samples = _write_files(making, formats, subject, model, example, batches, settings["tolerance"])
        figures = measure(model, subject.read_outputs(model), batches) if subject.labelled else {}
        whole = run | {
            "model": without_file(run["model"]),
            "adapter": {"name": "none"},
        }  # what is exported has its weights with it
        OmegaConf.save(OmegaConf.create(whole), making / "config.yaml")
        metadata = describe(path, subject, model) | {
            "input_dtype": _dtypes(example),
            "files": files,
            "compared_on": {"part": subject.part, "input": settings["input"], "samples": samples},
            "tolerance": settings["tolerance"],
            "measured": {f"{subject.part}/{name}": value for name, value in figures.items()},
        }
        write_json(making / "metadata.json", metadata)
        card.write_card(making, path, run, subject.record, metadata)
    print(f"written      {output}")
    return 0


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A directory to write in, which becomes `output` once all is written, and is gone where something fails."""
    making = output.with_name(f".making-{output.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed while it exported
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be made: {error.strerror}. Name another directory.") from error
    try:
        yield making
        if output.is_dir():
            output.rmdir()
        os.rename(making, output)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _load(subject: Subject, merge: bool = True) -> "nn.Module":
    """The model in evaluation mode; what its adapters have learned is in its weights where they are to be merged."""
    from launcher.models.adapters import merged

    model = subject.load_model().eval()
    return merged(model) if merge else model


def _write_files(
    making: Path,
    formats: list[str],
    subject: Subject,
    model: "nn.Module",
    example: Any,
    batches: Batches,
    tolerance: float,
) -> tuple[dict[str, Any], int]:
    """Write the model in each format; what metadata.json says of the files, and the samples that they were tried on."""
    files, samples = {}, 0
    for name in formats:
        file, write = WRITERS[name]
        rebuild = partial(_load, subject, merge=name != "adapter")
        loaded = write(model, example, making / file, rebuild)
        difference, scale, samples = compare(model, loaded, batches)
        if not difference <= tolerance:
            raise ConfigError(
                f"format={name}: differs from the model by up to {difference:.3g} on {samples} samples (outputs up "
                f"to {scale:.3g}), more than tolerance={tolerance:g}. Nothing was written."
            )
        size = (making / file).stat().st_size
        files[file] = {"format": name, "bytes": size, "max_abs_difference": difference}
        print(f"{name:<12} {file}, {size:,} bytes: differs by at most {difference:.3g} on {samples} samples")
    return files, samples


def _example(pairs: Iterable[tuple[Any, "Tensor"]]) -> Any:
    """The inputs of two prepared samples, a tensor or a dict of some: a batch of one would be taken for a constant."""
    import torch
    from torch import Tensor

    from launcher.core.compat import tree_map_only

    inputs, _ = next(iter(pairs))
    if not isinstance(inputs, Tensor) and not _is_flat(inputs):
        raise ConfigError(
            f"run_dir: the model takes a {type(inputs).__name__}, and only one tensor, or a dict of tensors, can be "
            "exported."
        )
    if samples_in(inputs) == 2:
        return inputs
    return tree_map_only(Tensor, lambda one: torch.cat([one, one]), inputs)


def _is_flat(inputs: Any) -> bool:
    """Whether inputs are a dict of tensors."""
    from torch import Tensor

    return isinstance(inputs, dict) and bool(inputs) and all(isinstance(one, Tensor) for one in inputs.values())


def _dtypes(example: Any) -> Any:
    """The type of the inputs, by name where they have names."""
    if isinstance(example, dict):
        return {name: _dtypes(one) for name, one in example.items()}
    return str(example.dtype).removeprefix("torch.")


def samples_in(inputs: Any) -> int:
    """How many samples a tensor or a dict of tensors is of."""
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def compare(model: "nn.Module", loaded: Loaded, batches: Batches) -> tuple[float, float, int]:
    """The largest difference of an output from the model's, the largest output, and the number of samples."""
    import torch
    from torch import Tensor

    from launcher.core.compat import tree_map_only
    from launcher.tasks.supervised import tensor_of

    difference, scale, samples = 0.0, 0.0, 0
    with torch.no_grad():
        for inputs, _ in batches():
            first = tree_map_only(Tensor, lambda one: one[:1], inputs)
            pieces = [inputs] if samples else [first, inputs]  # the first one also alone
            samples += samples_in(inputs)
            for piece in pieces:
                wanted, found = tensor_of(model(piece)), tensor_of(loaded(piece))
                if wanted.shape != found.shape:
                    raise ConfigError(f"format: outputs {list(found.shape)}, and the model gives {list(wanted.shape)}.")
                gap = (wanted.double() - found.double()).abs().max().item()
                difference = max(difference, gap if gap == gap else float("inf"))
                scale = max(scale, wanted.abs().max().item())
    return difference, scale, samples


def measure(model: "nn.Module", meaning: "Outputs | None", batches: Batches) -> dict[str, float]:
    """The figures of the model on all samples, in float32 on the CPU; none where a sample has many outputs."""
    import torch

    from launcher.tasks.supervised import tensor_of

    if meaning is None or meaning.dense:
        return {}
    sums = meaning.sums("cpu")
    with torch.no_grad():
        for inputs, targets in batches():
            sums.update(meaning.scores(tensor_of(model(inputs))), targets)
    return sums.figures()


def describe(path: Path, subject: Subject, model: "nn.Module") -> dict[str, Any]:
    """What one must know to use the model, for metadata.json."""
    record, run = subject.record, subject.run
    normalisation: dict[str, Any] = {}
    if record["input_mean"] is not None:
        normalisation = {"inputs": "(raw - mean) / std", "mean": record["input_mean"], "std": record["input_std"]}
    elif record["prepare"] is not None:
        normalisation = dict(record["prepare"])
    return {
        "run": path.resolve().name,
        **subject.chosen.record(),
        "moving_average": run["ema_decay"] is not None,
        "task": record["task"],
        "data": record["name"],
        "input_shape": record["input_shape"],
        "num_outputs": record["num_outputs"],
        "class_names": record["class_names"],
        "normalisation": normalisation,
        "reader": record["reader"],
        "target_mean": record["target_mean"],
        "target_std": record["target_std"],
        "model": run["model"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **provenance.summary(),
    }
