"""The forms in which a trained model can be written: each writes a file, and loads it again to be compared."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.core.errors import ConfigError
from launcher.core.extras import DISTRIBUTION

if TYPE_CHECKING:
    from torch import Tensor, nn

Loaded = Callable[[Any], "Tensor"]  # from inputs, a tensor or a dict of tensors, to outputs


def _write_safetensors(model: "nn.Module", example: Any, file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
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


def _write_torch_export(model: "nn.Module", example: Any, file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
    """The graph and the weights, for torch without the model's class, also from C++."""
    import torch

    try:
        program = torch.export.export(_of_tensors(model, example), (example,), dynamic_shapes=_any_size(example))
        torch.export.save(program, file)
        loaded: Loaded = torch.export.load(file).module()
    except Exception as error:  # whatever the tracing of a person's own model raises
        raise _cannot("torch_export", "torch.export", model, error) from error
    return loaded


def _write_onnx(model: "nn.Module", example: Any, file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
    """The graph and the weights for other runtimes, by torch's exporter over torch.export."""
    import onnxruntime
    import torch

    names = list(example) if isinstance(example, dict) else ["inputs"]
    try:
        torch.onnx.export(  # which takes a dict that comes last for keyword arguments
            _of_tensors(model, example), (example, {}), file, dynamo=True, dynamic_shapes=_any_size(example),
            input_names=names, output_names=["outputs"], external_data=False, verbose=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise _cannot("onnx", "torch.onnx.export", model, error) from error
    taken = {one.name for one in session.get_inputs()}  # without those that the outputs do not depend on

    def loaded(inputs: Any) -> "Tensor":
        named = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        given = {name: one.numpy() for name, one in named.items() if name in taken}
        return torch.from_numpy(session.run(None, given)[0])

    return loaded


def _write_adapter(model: "nn.Module", example: Any, file: Path, rebuild: Callable[[], "nn.Module"]) -> Loaded:
    """What an adapter has learned alone, for the package peft: it must give the same beside the base."""
    from launcher.models import peft_files
    from launcher.training.checkpoint import save_weights

    tensors, settings = peft_files.of_model(rebuild())
    save_weights(file, tensors)
    settings.save_pretrained(str(file.parent))
    return peft_files.read(rebuild(), file.parent)


def _of_tensors(model: "nn.Module", example: Any) -> "nn.Module":
    """The model, or where it takes a dict or gives more than a tensor, a module from its inputs to one tensor."""
    import torch
    from torch import Tensor, nn

    from launcher.tasks.supervised import tensor_of

    with torch.no_grad():
        if isinstance(example, Tensor) and isinstance(model(example), Tensor):
            return model

    class Whole(nn.Module):
        """The model in one call."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any) -> Any:
            """One tensor."""
            return tensor_of(self.model(inputs))

    return Whole().eval()


def _any_size(example: Any) -> Any:
    """What torch.export is told of shapes: any number of samples, and of samples in a dict any length that it allows.

    The lengths of a dict are those of sequences that were padded to the longest of a batch.
    """
    from torch.export import Dim

    if not isinstance(example, dict):
        return ({0: Dim("batch")},)
    return ({name: {0: Dim.DYNAMIC, **dict.fromkeys(range(1, one.dim()), Dim.AUTO)} for name, one in example.items()},)


WRITERS: dict[str, tuple[str, Callable[..., Loaded]]] = {
    "safetensors": ("model.safetensors", _write_safetensors),
    "torch_export": ("model.pt2", _write_torch_export),
    "onnx": ("model.onnx", _write_onnx),
    "adapter": ("adapter_model.safetensors", _write_adapter),
}


def _cannot(name: str, what: str, model: "nn.Module", error: Exception) -> ConfigError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])[:500]
    return ConfigError(
        f"format={name}: {what} cannot take {type(model).__name__}: {type(error).__name__}: {text} "
        "Change what the model's forward does there, or use format=safetensors."
    )


def need_onnx() -> None:
    """Check that what writes ONNX is there; a ConfigError where it is not."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"format=onnx: {name} does not import ({error}): pip install '{DISTRIBUTION}[export]'"
            ) from error
