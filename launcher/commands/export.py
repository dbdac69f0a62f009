"""A trained model in a form that other programs load, compared with the original before it counts; and its card.

    launcher export run_dir=outputs/2026-01-31/12-00-00 format=onnx output=model
    launcher export run_dir=outputs/2026-01-31/12-00-00 format=[safetensors,torch_export]

Each takes prepared inputs [n, ...] (metadata.json says how they are prepared), of any n, and gives outputs
[n, num_outputs]. A directory is written whole or not at all.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from launcher.config import composition
from launcher.config.places import check_writable
from launcher.config.schema import EXPORT_SCHEMA
from launcher.core.errors import ConfigError
from launcher.distributed import process_group
from launcher.distributed.watch import guarded
from launcher.run import provenance, saved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.batching.splits import Split
    from launcher.data.source import Data
    from launcher.training.outputs import Outputs

Loaded = Callable[["Tensor"], "Tensor"]


def main() -> None:
    """The console command: exit status 0, 2 for wrong input or a model that cannot be exported, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and export."""
    composed = composition.compose_tool("export", argv, EXPORT_SCHEMA)
    with saved.reading():
        return 0 if composed is None else export(composed.plain())


def export(settings: dict[str, Any]) -> int:
    """Write a model and its card.

    Args:
        settings: Those of conf/export.yaml.

    Returns:
        Exit status.
    """
    path, run = saved.open_run(settings["run_dir"])
    formats = [settings["format"]] if isinstance(settings["format"], str) else list(dict.fromkeys(settings["format"]))
    output = Path(settings["output"]).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"output={settings['output']}: is there already, with something in it. Name another directory."
        )
    check_writable(output, "output")
    ranks = process_group.join()
    if ranks.world_size > 1:
        raise ConfigError(f"launcher export is one process, and {ranks.world_size} were started: call it alone.")
    if "onnx" in formats:
        _need_onnx()
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])
    record, part = saved.read_record(path, run), settings["part"]
    if settings["input"] is None:
        data, labelled = saved.own_data(run, settings["data"], record), True
    else:
        others = saved.read_others(record, settings["input"])
        data, part, labelled = saved.data_of_others(record, others), "test", others.labelled
    model = saved.load_model(run, record["facts"], chosen.path).eval()

    import torch

    from launcher.batching.loading import choose_workers
    from launcher.batching.splits import suit
    from launcher.core.files import write_json
    from launcher.run import card
    from launcher.training.outputs import Outputs
    from launcher.training.tryout import read_outputs

    suit(model, getattr(data, part))
    torch.set_num_threads(process_group.choose_threads(settings["threads"], ranks))
    workers = choose_workers(settings["num_workers"], getattr(data, part), settings["batch_size"])
    example = _example(data, part, workers)
    making = output.with_name(f".making-{output.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed while it exported
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"output={settings['output']}: cannot be made: {error.strerror}. Name another directory."
        ) from error
    try:
        files = {}
        for name in formats:
            file, write = WRITERS[name]
            loaded = write(
                model, example, making / file, lambda: saved.load_model(run, record["facts"], chosen.path).eval()
            )
            difference, scale, samples = compare(model, loaded, data, part, settings["batch_size"], workers)
            if not difference <= settings["tolerance"]:
                raise ConfigError(
                    f"format={name}: differs from the model by up to {difference:.3g} on {samples} samples (outputs up "
                    f"to {scale:.3g}), more than tolerance={settings['tolerance']:g}. Nothing was written."
                )
            size = (making / file).stat().st_size
            files[file] = {"format": name, "bytes": size, "max_abs_difference": difference}
            print(f"{name:<12} {file}, {size:,} bytes: differs by at most {difference:.3g} on {samples} samples")
        figures = {}
        if labelled:
            measured = getattr(data, part)
            meaning = read_outputs(model, measured, Outputs.of(data, run["loss"]))
            figures = measure(model, meaning, measured, settings["batch_size"], workers)
        told = "input" if settings["input"] is not None else part
        whole = run | {"model": saved.without_file(run["model"])}  # what is exported has its weights with it
        OmegaConf.save(OmegaConf.create(whole), making / "config.yaml")
        metadata = describe(path, run, record, model, chosen) | {
            "input_dtype": str(example.dtype).removeprefix("torch."),
            "files": files,
            "compared_on": {"part": told, "input": settings["input"], "samples": samples},
            "tolerance": settings["tolerance"],
            "measured": {f"{told}/{name}": value for name, value in figures.items()},
        }
        write_json(making / "metadata.json", metadata)
        card.write_card(making, path, run, record, metadata)
        if output.is_dir():
            output.rmdir()
        os.rename(making, output)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    print(f"written      {output}")
    return 0


def _example(data: "Data", part: str, workers: int) -> "Tensor":
    """Two prepared samples: a batch of one would be taken for a constant."""
    import torch
    from torch import Tensor

    from launcher.batching.stream import in_order

    inputs, _ = next(iter(in_order(getattr(data, part), 0, 1, 2, torch.device("cpu"), min(workers, 1))))
    if not isinstance(inputs, Tensor):
        raise ConfigError(f"run_dir: the model takes a {type(inputs).__name__}, and only one tensor can be exported.")
    return inputs if len(inputs) == 2 else torch.cat([inputs, inputs])


def compare(
    model: "nn.Module", loaded: Loaded, data: "Data", part: str, batch_size: int, workers: int
) -> tuple[float, float, int]:
    """Compare what was loaded with the model, on a whole part and on its first sample alone.

    Returns:
        The largest absolute difference of an output, the largest absolute output, and the number of samples.
    """
    import torch

    from launcher.batching.stream import in_order

    difference, scale, samples = 0.0, 0.0, 0
    with torch.no_grad():
        for inputs, _ in in_order(getattr(data, part), 0, 1, batch_size, torch.device("cpu"), workers):
            pieces = [inputs] if samples else [inputs[:1], inputs]
            samples += len(inputs)
            for piece in pieces:
                wanted, found = model(piece), loaded(piece)
                if wanted.shape != found.shape:
                    raise ConfigError(f"format: outputs {list(found.shape)}, and the model gives {list(wanted.shape)}.")
                gap = (wanted.double() - found.double()).abs().max().item()
                difference = max(difference, gap if gap == gap else float("inf"))
                scale = max(scale, wanted.abs().max().item())
    return difference, scale, samples


def measure(model: "nn.Module", meaning: "Outputs", part: "Split", batch_size: int, workers: int) -> dict[str, float]:
    """The figures of the model on a part, in float32 on the CPU; none of a language."""
    import torch

    from launcher.batching.stream import in_order

    if meaning.task == "language":
        return {}
    sums = meaning.sums("cpu")
    with torch.no_grad():
        for inputs, targets in in_order(part, 0, 1, batch_size, torch.device("cpu"), workers):
            sums.update(meaning.scores(model(inputs)), targets)
    return sums.figures()


def describe(
    path: Path, run: dict[str, Any], record: dict[str, Any], model: "nn.Module", chosen: saved.Chosen
) -> dict[str, Any]:
    """What one must know to use the model: metadata.json."""
    normalisation: dict[str, Any] = {}
    if record["input_mean"] is not None:
        normalisation = {"inputs": "(raw - mean) / std", "mean": record["input_mean"], "std": record["input_std"]}
    elif record["prepare"] is not None:
        normalisation = dict(record["prepare"])
    return {
        "run": path.resolve().name,
        **chosen.record(),
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


# --- The formats -----------------------------------------------------------------------------------------------------


def _write_safetensors(model: "nn.Module", example: "Tensor", file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
    """The weights alone, for who has the model's class: a new model that loads them must give the same."""
    import torch
    from safetensors.torch import load_file

    from launcher.training.checkpoint import save_weights

    # Untied copies, as checkpoints have them.
    save_weights(file, {name: one.detach().clone().contiguous() for name, one in model.state_dict().items()})
    fresh = rebuild()
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    fresh.load_state_dict(load_file(file))
    return fresh


def _write_torch_export(
    model: "nn.Module", example: "Tensor", file: Path, rebuild: Callable[[], "nn.Module"]
) -> Loaded:
    """The graph and the weights, for torch without the model's class, also from C++."""
    import torch

    try:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file)
        loaded: Loaded = torch.export.load(file).module()
    except Exception as error:  # whatever the tracing of a person's own model raises
        raise _cannot("torch_export", "torch.export", model, error) from error
    return loaded


def _write_onnx(model: "nn.Module", example: "Tensor", file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
    """The graph and the weights for other runtimes, by torch's exporter over torch.export."""
    import onnxruntime
    import torch

    try:
        torch.onnx.export(
            model, (example,), file, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["inputs"], output_names=["outputs"], external_data=False, verbose=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise _cannot("onnx", "torch.onnx.export", model, error) from error
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


WRITERS: dict[str, tuple[str, Callable[..., Loaded]]] = {
    "safetensors": ("model.safetensors", _write_safetensors),
    "torch_export": ("model.pt2", _write_torch_export),
    "onnx": ("model.onnx", _write_onnx),
}


def _cannot(name: str, what: str, model: "nn.Module", error: Exception) -> ConfigError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])[:500]
    return ConfigError(
        f"format={name}: {what} cannot take {type(model).__name__}: {type(error).__name__}: {text} "
        "Change what the model's forward does there, or use format=safetensors."
    )


def _need_onnx() -> None:
    from importlib import import_module

    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"format=onnx: {name} does not import ({error}): pip install 'hydra-accelerate-launcher[export]'"
            ) from error
