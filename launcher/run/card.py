"""The card of an exported model: README.md, from the record of its run and nothing else; card.md.j2 is its text."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.config.components import accepted_names, locate
from launcher.core.files import numbers, read_json
from launcher.run import provenance
from launcher.run.report import figure_text, render

Rows = list[tuple[str, ...]]

# The settings that a reader compares runs by; the rest is in config.yaml.
SHOWN_SETTINGS = (
    "epochs", "max_steps", "seed", "batch.global_size", "batch.lr_scaling", "mixed_precision", "clip_grad_norm",
    "clip_grad_value", "ema_decay", "decay_bias_and_norm",
)  # fmt: skip


def write_card(
    directory: Path, path: Path, run: Mapping[str, Any], record: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write README.md beside exported files, with the curves of the run in `path` where there are some.

    Args:
        directory: Of the exported files.
        path: Run directory.
        run: Settings of the run.
        record: data.json of the run.
        metadata: metadata.json of the export.
    """
    summary = read_json(path / "summary.json")
    picture = "curves.png" if (path / "curves.png").is_file() else None
    if picture is not None:
        shutil.copy(path / picture, directory / picture)
    text = render(
        Path(__file__).with_name("card.md.j2"),
        False,
        run=run,
        record=record,
        metadata=metadata,
        model=_model(run, record, metadata),
        by_run=_measured_by_run(metadata["step"], summary),
        picture=picture,
        facts=_facts(run["model"], record["facts"]),
        inputs=f"[n, {', '.join(map(str, record['input_shape']))}] {metadata['input_dtype']}",
        columns=_columns(record),
        training=_training(run, summary, provenance.read(path)),
        arguments=_arguments,
        digits=_digits,
        shown=_shown,
    )
    (directory / "README.md").write_text(text + "\n", "utf-8")


def _model(run: Mapping[str, Any], record: Mapping[str, Any], metadata: Mapping[str, Any]) -> Rows:
    """What it is, and what it has learned from."""
    classes = record["class_names"] or []
    parts = ", ".join(f"{part['samples']:,} {name}" for name, part in record["parts"].items())
    shape = f"{'x'.join(map(str, record['input_shape']))} to {record['num_outputs']}"
    which = f" ({metadata['which']})" if metadata["which"] else ""
    average = ", moving average" if metadata["moving_average"] else ""
    return [
        ("data", f"{record['name']}: {record['task']}, {shape}; {parts}"),
        ("classes", ", ".join(classes[:20]) + (f", ... ({len(classes)})" if len(classes) > 20 else "")),
        ("model", f"`{run['model']['_target_']}`, {metadata['parameters']:,} parameters"),
        ("", _arguments(run["model"])),
        ("weights", f"{metadata['checkpoint']}{which} of the run {metadata['run']}{average}"),
    ]


def _measured_by_run(step: int, summary: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What the run has measured of these very weights; where it has not, of its best and its last ones."""
    by_step = {}
    for group, key in (("best", "best_step"), ("final", "step")):
        found = numbers(summary.get(group))
        by_step[summary.get(key)] = {name: value for name, value in found.items() if name.startswith("test/")}
    if by_step.get(step):
        return [("these weights", by_step[step])]
    return [(f"its weights of step {at}", figures) for at, figures in by_step.items() if figures]


def _facts(model: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What the model's class has to be given beside its settings, as arguments of a call."""
    names = accepted_names(locate(model["_target_"], "model")) or set()
    missing = {name: fact for name, fact in facts.items() if name in names and model.get(name) is None}
    return ", ".join(f"{name}={tuple(v) if isinstance(v, list) else v!r}" for name, v in missing.items())


def _columns(record: Mapping[str, Any]) -> Rows:
    """Name, mean and standard deviation of each column of a table that was standardised."""
    if record["input_mean"] is None:
        return []
    reader = record["reader"] or {}
    names = [name for column in reader.get("plan") or () for name in column["inputs"]]  # a column may be several
    names = names or reader.get("columns") or list(map(str, range(len(record["input_mean"]))))
    return list(zip(names, _digits(record["input_mean"]), _digits(record["input_std"]), strict=True))


def _training(run: Mapping[str, Any], summary: Mapping[str, Any], made: Mapping[str, Any]) -> Rows:
    """What the run was made with."""
    rows: Rows = [
        (group, f"`{run[group]['_target_']}` {_arguments(run[group])}") for group in ("loss", "optimizer", "scheduler")
    ]
    for key in SHOWN_SETTINGS:
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
    return [
        *rows,
        ("devices", f"{made['devices']} x {made['device']} ({made['processor']}, {made['threads']} threads each)"),
        ("code", code or "in no repository"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("started", made["time"]),
        ("command", f"`{made['command']}`"),
    ]


def _arguments(settings: Mapping[str, Any], named_by: str = "_target_") -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != named_by)


def _digits(values: Iterable[float]) -> list[str]:
    return [f"{value:.9g}" for value in values]


def _shown(figures: Mapping[str, Any]) -> Rows:
    return [(name, figure_text(value)) for name, value in figures.items()]
