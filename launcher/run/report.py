"""The page of a run, report.html, made from the files of its directory; each may be missing, as after a failure."""

import math
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from launcher.core.files import numbers, read_json, write_text
from launcher.run import curves
from launcher.run.curves import EVALUATED, TRAIN
from launcher.run.terminal import headings_of

MATRIX = 30  # classes; above, the confusions that occur most are listed instead


def write_report(run_dir: Path, drawn: curves.Curves | None = None) -> Path:
    """Write report.html into a run directory: one file that needs nothing else, readable on a phone and in the dark.

    Args:
        run_dir: Of the run.
        drawn: Its curves, where they have been drawn for another picture.
    """
    from markupsafe import Markup

    run_dir = Path(run_dir)
    summary, evaluation = read_json(run_dir / "summary.json"), read_json(run_dir / "evaluation.json")
    config = run_dir / ".hydra" / "config.yaml"
    status = str(summary.get("status", "not finished"))
    matrix = evaluation.get("confusion") or []
    names = _names(evaluation, len(matrix))
    return write_page(
        run_dir / "report.html",
        run_dir.resolve().name,
        Path(__file__).with_name("report.html.j2"),
        status=status,
        tone={"finished": "good", "failed": "bad"}.get(status, "open"),
        tiles=_tiles(summary, evaluation),
        pictures=[Markup(picture) for picture in (drawn or curves.Curves(run_dir)).svgs()],
        headings=list(headings_of(summary)),
        metrics=_metrics(summary, evaluation),
        whose=_whose(evaluation),
        classes=_classes(evaluation),
        confused=_confused(matrix, names) if len(matrix) > MATRIX else [],
        confusion=list(zip(names, matrix, strict=True)),
        colours=(TRAIN, EVALUATED),
        facts=_facts(summary),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def write_page(path: Path, name: str, template: Path, style: str = "", **content: Any) -> Path:
    """Write a page around what a template makes, in which every text is escaped, and return its path.

    Args:
        path: Of the page.
        name: Its title, which the template gets too.
        template: See `render`.
        style: CSS beside that of all pages.
        content: What else the template gets.
    """
    from markupsafe import Markup

    body = Markup(render(template, True, name=name, **content).strip())
    page = Path(__file__).with_name("page.html.j2")
    write_text(path, render(page, True, title=name, style=Markup(style), body=body) + "\n")
    return path


def render(template: Path, escapes: bool, **content: Any) -> str:
    """What the Jinja2 template in a file makes of its content; it has the filter `figure`, which is `figure_text`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_text
    return environment.get_template(template.name).render(**content)


def _tiles(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that one looks for first."""
    part, whose = str(evaluation.get("part", "test")), _whose(evaluation)
    figures = {f"{part} {name}{whose}": value for name, value in numbers(evaluation.get("metrics")).items()}
    if not figures:
        final = numbers(summary.get("final"))
        figures = {name.replace("/", " "): final[name] for name in final if name.startswith(("test/", "eval/"))}
    figures = dict(list(figures.items())[:4])
    for name in ("step", "epoch", "samples_per_second", "tokens_per_second"):
        if summary.get(name) is not None:
            figures[name.replace("_", " ")] = summary[name]
    return figures


def _whose(evaluation: Mapping[str, Any]) -> str:
    """Which model was measured."""
    return f" ({evaluation.get('which', '')}, step {evaluation['step']})" if "step" in evaluation else ""


def _metrics(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, final and best value of each."""
    final, best = numbers(summary.get("final")), numbers(summary.get("best"))
    part = str(evaluation.get("part", "test"))
    measured = {f"{part}/{name}": value for name, value in numbers(evaluation.get("metrics")).items()}
    final |= {name: value for name, value in measured.items() if name not in final}
    return [(name, final.get(name), best.get(name)) for name in {**final, **best}]


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the summary says beside figures, and the versions."""
    shown = {name: value for name, value in summary.items() if not isinstance(value, dict | list)}
    rows = [(name.replace("_", " "), value) for name, value in shown.items() if name != "status"]
    return [*rows, *numbers(summary.get("versions")).items()]


def _names(evaluation: Mapping[str, Any], count: int) -> list[str]:
    names = evaluation.get("class_names") or []
    return [str(names[place]) if place < len(names) else str(place) for place in range(count)]


def _classes(evaluation: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Name, accuracy (None where it is no number) and number of samples of each class."""
    accuracy = evaluation.get("per_class_accuracy") or []
    shares = [value if isinstance(value, int | float) and math.isfinite(value) else None for value in accuracy]
    counts = [sum(row) for row in evaluation.get("confusion") or []]
    return list(zip_longest(_names(evaluation, len(shares)), shares, counts[: len(shares)], fillvalue=""))


def _confused(matrix: list[list[int]], names: list[str]) -> list[tuple[int, str, str]]:
    """The confusions that occur most: how often, true class, what it was taken for."""
    pairs = [
        (count, names[true], names[guess])
        for true, row in enumerate(matrix)
        for guess, count in enumerate(row)
        if count and true != guess
    ]
    return sorted(pairs, key=lambda pair: -pair[0])[:30]


def figure_text(value: Any, digits: int = 6) -> str:
    """A number as pages show it, with thousands in groups; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if math.isfinite(value) and abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
