"""The card of an exported model: README.md, from the record of its run and nothing else."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.config.components import accepted_names, locate
from launcher.core.files import numbers, read_json
from launcher.run import provenance
from launcher.run.report import figure_text

# The settings that a reader compares runs by; the rest is in config.yaml.
TOLD = (
    "epochs",
    "max_steps",
    "seed",
    "batch.global_size",
    "batch.lr_scaling",
    "mixed_precision",
    "clip_grad_norm",
    "ema_decay",
    "decay_bias_and_norm",
)
USE = {
    "safetensors": """\
```python
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

model = instantiate(OmegaConf.load("config.yaml").model, {facts}, _convert_="all")
model.load_state_dict(load_file("{file}"))
outputs = model.eval()(inputs)  # {shape} {dtype}, prepared as below
```""",
    "torch_export": """\
```python
import torch

outputs = torch.export.load("{file}").module()(inputs)  # {shape} {dtype}, prepared as below
```""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(outputs,) = session.run(None, {{"inputs": inputs}})  # {shape} {dtype}, prepared as below
```""",
}


def write_card(
    directory: Path, path: Path, run: Mapping[str, Any], record: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write README.md, with the run's curves where there are some.

    Args:
        directory: Of the exported files.
        path: Run directory.
        run: Settings of the run.
        record: data.json of the run.
        metadata: What metadata.json holds.
    """
    summary = read_json(path / "summary.json")
    made = provenance.read(path)
    classes = record["class_names"] or []
    parts = ", ".join(f"{part['samples']:,} {name}" for name, part in record["parts"].items())
    sections = [
        f"# {_component(run['model'])} on {record['name']}",
        _table(
            [
                ("data", f"{record['name']}: {record['task']}, {_shape(record)}; {parts}"),
                ("classes", ", ".join(classes[:20]) + (f", ... ({len(classes)})" if len(classes) > 20 else "")),
                ("model", f"`{run['model']['_target_']}`, {metadata['parameters']:,} parameters"),
                ("", _arguments(run["model"])),
                (
                    "weights",
                    f"{metadata['checkpoint']}{_which(metadata)} of the run {metadata['run']}"
                    + (", moving average" if metadata["moving_average"] else ""),
                ),
            ]
        ),
        "## Figures\n\n" + _figures(metadata, summary),
        "## Files\n\n"
        + _table(
            [
                (
                    f"`{file}`",
                    f"{entry['format']}, {entry['bytes']:,} bytes; outputs differ from the model's by at most "
                    f"{entry['max_abs_difference']:.2g} on {metadata['compared_on']['samples']:,} samples",
                )
                for file, entry in metadata["files"].items()
            ]
        ),
        "## Use\n\n"
        + "\n\n".join(
            _use(file, entry["format"], metadata["input_dtype"], run, record)
            for file, entry in metadata["files"].items()
        ),
        "## Preparation of the inputs\n\n" + _preparation(record),
        "## Training\n\n" + _training(run, summary, made),
    ]
    if (path / "curves.png").is_file():
        shutil.copy(path / "curves.png", directory / "curves.png")
        sections.insert(3, "![Curves of the run](curves.png)")
    (directory / "README.md").write_text("\n\n".join(section for section in sections if section) + "\n", "utf-8")


def _which(metadata: Mapping[str, Any]) -> str:
    return f" ({metadata['which']})" if metadata["which"] else ""


def _figures(metadata: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Those measured on these very weights, and those of the run's end where they are other weights."""
    rows = [(name, figure_text(value)) for name, value in metadata["measured"].items()]
    samples = metadata["compared_on"]["samples"]
    text = f"Measured at the export, in float32, on {samples:,} samples.\n\n{_table(rows)}" if rows else ""
    steps = {"best": summary.get("best_step"), "final": summary.get("step")}
    by_run = {step: {n: v for n, v in numbers(summary.get(group)).items() if n.startswith("test/")}
              for group, step in steps.items()}  # fmt: skip
    for step, figures in by_run.items():
        if figures and (step == metadata["step"] or not by_run.get(metadata["step"])):
            whose = "these weights" if step == metadata["step"] else f"its weights of step {step}"
            table = _table([(name, figure_text(value)) for name, value in figures.items()])
            text += f"\n\nMeasured by the run on its test part, {whose}.\n\n{table}"
    return text.strip() or "None was measured."


def _preparation(record: Mapping[str, Any]) -> str:
    if record["input_mean"] is not None:
        columns = (record["reader"] or {}).get("columns") or [str(i) for i in range(len(record["input_mean"]))]
        rows = zip(columns, record["input_mean"], record["input_std"], strict=True)
        text = "Each column: (value - mean) / std, by the training part.\n\n" + _table(
            [(column, f"{mean:.9g}", f"{std:.9g}") for column, mean, std in rows], ("column", "mean", "std")
        )
    elif record["prepare"] is not None:
        arguments = {name: value for name, value in record["prepare"].items() if name != "name"}
        text = f"`{record['prepare']['name']}` of raw values: " + ", ".join(f"{k} {v}" for k, v in arguments.items())
    else:
        text = "None: the model takes the inputs as they are."
    if record["target_mean"] is not None:

        def numbers(key: str) -> str:
            return ", ".join(f"{number:.9g}" for number in record[key])

        text += f"\n\nOutputs are standardised: value = output * {numbers('target_std')} + {numbers('target_mean')}."
    return text


def _training(run: Mapping[str, Any], summary: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        (group, f"`{run[group]['_target_']}` {_arguments(run[group])}") for group in ("loss", "optimizer", "scheduler")
    ]
    for key in TOLD:
        group, _, name = key.rpartition(".")
        value = (run[group] if group else run).get(name)
        if value is not None:
            rows.append((key, str(value)))
    for key in ("step", "epoch", "samples_seen", "training_seconds", "peak_memory_mb"):
        if summary.get(key) is not None:
            rows.append((key.replace("_", " "), figure_text(summary[key])))
    code = ", ".join(
        f"{name} at {tree['commit'][:12]}{' with uncommitted changes' if tree['changes'] else ''}"
        for name, tree in made["code"].items()
    )
    versions = {"python": made["python"], **{k: v for k, v in (summary.get("versions") or {}).items() if k != "python"}}
    rows += [
        ("devices", f"{made['devices']} x {made['device']} ({made['processor']}, {made['threads']} threads each)"),
        ("code", code or "in no repository"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("started", made["time"]),
        ("command", f"`{made['command']}`"),
    ]
    return _table(rows)


def _use(file: str, form: str, dtype: str, run: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    names = accepted_names(locate(run["model"]["_target_"], "model")) or set()
    given = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in record["facts"].items()}
    facts = ", ".join(
        f"{name}={fact!r}" for name, fact in given.items() if name in names and run["model"].get(name) is None
    )
    return USE[form].format(
        file=file, facts=facts, dtype=dtype, shape=f"[n, {', '.join(map(str, record['input_shape']))}]"
    )


def _component(settings: Mapping[str, Any]) -> str:
    return str(settings["_target_"]).rpartition(".")[2]


def _arguments(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "_target_")


def _shape(record: Mapping[str, Any]) -> str:
    return f"{'x'.join(map(str, record['input_shape']))} to {record['num_outputs']}"


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """A Markdown table; rows whose second cell is empty are left out."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows if row[1]]
    if not lines:
        return ""
    width = len(lines[0])
    top = head or ("",) * width
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(top), ["---"] * width, *lines])
