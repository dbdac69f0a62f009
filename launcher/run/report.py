"""The page of a run, report.html, made from the files of its directory, so that it can be made again at any time.

Every file may be missing (a run that was stopped, or failed): what there is, is shown.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.files import numbers, read_json, write_text
from launcher.run import curves
from launcher.run.curves import EVALUATED, TRAIN
from launcher.run.terminal import headings_of

MATRIX = 30  # classes; above, the confusions that occur most are listed instead


def write_report(run_dir: Path) -> Path:
    """Write report.html: one file that needs nothing else, readable on a phone and in the dark.

    Args:
        run_dir: Run directory; report.html is written in it.

    Returns:
        The page.
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
        pictures=[Markup(picture) for picture in curves.svg_curves(run_dir)],
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
    """Write a page around what a template makes, in which every text is escaped.

    Args:
        path: Of the page.
        name: Its title, which the template gets too.
        template: For Jinja2; the filter `figure` is `figure_text`.
        style: CSS beside that of all pages.
        content: What else the template gets.

    Returns:
        The page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import escape

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_text
    body = environment.get_template(template.name).render(name=name, **content)
    write_text(path, PAGE.format(title=escape(name), style=STYLE + style, body=body.strip()))
    return path


def _tiles(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that one looks for first."""
    part, whose = str(evaluation.get("part", "test")), _whose(evaluation)
    figures = {f"{part} {name}{whose}": value for name, value in numbers(evaluation.get("metrics")).items()}
    if not figures:
        final = _dict(summary, "final")
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
    return [*rows, *_dict(summary, "versions").items()]


def _names(evaluation: Mapping[str, Any], count: int) -> list[str]:
    names = evaluation.get("class_names") or []
    return [str(names[place]) if place < len(names) else str(place) for place in range(count)]


def _classes(evaluation: Mapping[str, Any]) -> list[tuple[str, float | None, int | str]]:
    """Name, accuracy (None where it is no number) and number of samples of each class."""
    accuracy = evaluation.get("per_class_accuracy") or []
    counts = [sum(row) for row in evaluation.get("confusion") or []]
    rows: list[tuple[str, float | None, int | str]] = []
    for place, (name, value) in enumerate(zip(_names(evaluation, len(accuracy)), accuracy, strict=True)):
        share = value if isinstance(value, int | float) and math.isfinite(value) else None
        rows.append((name, share, counts[place] if place < len(counts) else ""))
    return rows


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


def _dict(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e; --faint: #b4bcc5;
  --rule: #d8dee4; --blue: #3987e5; --good: #1a7f37; --bad: #cf222e; --open: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9198a1;
  --faint: #484f58; --rule: #30363d; --good: #3fb950; --bad: #f85149; --open: #d29922; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.25rem 1rem 3rem; display: flex; flex-wrap: wrap;
  column-gap: 1rem; }
main > * { flex: 1 1 auto; min-width: 0; max-width: 100%; }
header, .tiles, section:has(figure, img, pre) { flex-basis: 100%; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; margin-bottom: 1rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
.status { border: 1px solid currentColor; border-radius: 2rem; padding: .1rem .75rem; font-weight: 600;
  font-size: .85rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
section, .tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; }
section { padding: 1rem; margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; }
.tiles > div { padding: .7rem 1rem; }
.tiles b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: .75rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; } .tall { max-height: 30rem; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: middle; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
.bar { width: min(16rem, 30vw); height: .6rem; border-radius: .3rem; background: var(--rule); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); }
.matrix td { text-align: center; padding: .3rem .5rem; min-width: 2.4rem; border: 1px solid var(--card); }
.matrix th { border: 0; padding: .3rem .6rem .3rem 0; white-space: nowrap; max-width: 12rem; overflow: hidden;
  text-overflow: ellipsis; }
.matrix thead th { padding: .3rem 0; text-align: center; vertical-align: bottom; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix tbody th { position: sticky; left: 0; background: var(--card); }
p { color: var(--soft); font-size: .85rem; margin: .6rem 0 0; }
pre { margin: 0; overflow-x: auto; font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""
