"""Pictures and a page made from the files of a run directory, so that they can be made again at any time.

Every file may be missing (a run that was stopped, or failed): what there is, is shown.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from launcher.core.files import numbers, read_json, replacing, write_text
from launcher.run.terminal import headings_of
from launcher.run.tracking import Record

POINTS = 1500  # of one line; a longer series is drawn by its envelope: more cannot be told apart at this size
MATRIX = 30  # classes; above, the confusions that occur most are listed instead
TRAIN, EVALUATED = "#3987e5", "#d95926"  # told apart by the colour-blind too, on a light and on a dark ground
INK = "#010203"  # of axes and letters; in the page this becomes the colour of the text around


def draw_curves(run_dir: Path) -> Path | None:
    """Draw how the run went: loss, metrics, learning rate, speed.

    Args:
        run_dir: Run directory; curves.png is written in it.

    Returns:
        The picture; None where there is nothing to draw yet.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = _panels(Path(run_dir))
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(_style("#24292f")):
        figure = Figure(figsize=(6.0 * columns, 3.2 * rows), facecolor="white")
        for place, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot()
            _draw(axes, title, lines, _extent(panels))
            _lay_out(axes, 6.0 * (place % columns), 3.2 * (rows - 1 - place // columns), 6.0, 3.2)
        path = Path(run_dir) / "curves.png"
        with replacing(path, "wb") as file:
            figure.savefig(file, dpi=130)
    return path


def write_report(run_dir: Path) -> Path:
    """Write report.html: one file that needs nothing else, readable on a phone and in the dark.

    Args:
        run_dir: Run directory; report.html is written in it.

    Returns:
        The page.
    """
    run_dir = Path(run_dir)
    summary = read_json(run_dir / "summary.json")
    evaluation = read_json(run_dir / "evaluation.json")
    config = _text(run_dir / ".hydra" / "config.yaml")
    name = run_dir.resolve().name
    status = str(summary.get("status", "not finished"))
    tone = {"finished": "good", "failed": "bad"}.get(status, "open")
    parts = [
        f'<header><h1>{escape(name)}</h1><span class="status {tone}">{escape(status)}</span></header>',
        _tiles(summary, evaluation),
        _section("Curves", _curves(run_dir)),
        _section("Metrics", _metrics(summary, evaluation)),
        _section(f"Classes{_whose(evaluation)}", _classes(evaluation)),
        _section(f"Confusion{_whose(evaluation)}", _confusion(evaluation)),
        _section("Run", _facts(summary)),
        _section("Configuration", f"<pre>{escape(config)}</pre>" if config else ""),
    ]
    body = "\n".join(part for part in parts if part)
    path = run_dir / "report.html"
    write_text(path, PAGE.format(title=escape(name), style=STYLE, body=body))
    return path


# What is drawn

Line = tuple[str, list[float], list[float]]  # name, steps, values


def _panels(run_dir: Path) -> dict[str, list[Line]]:
    """Title of each panel to its lines: names that differ in `train/` or `eval/` alone share one."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for file in ("metrics.jsonl", "timings.jsonl"):
        for row in Record(run_dir / file).rows():
            for name, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(row["step"])
                    values.append(float(value))
    known = {"samples_per_second": "samples per second", "lr": "learning rate", "train/grad_norm": "gradient norm"}
    hidden = {"step", "epoch", "time", "steps_per_second", "tokens_per_second", "memory_mb", "slowest_rank",
              "data_wait", "communication", "evaluating", "saving", "computing"}  # fmt: skip
    panels: dict[str, list[Line]] = {}
    for name, (steps, values) in series.items():
        if name not in hidden:
            title = known.get(name, name.split("/", 1)[-1])
            panels.setdefault(title, []).append((name, steps, values))
    last = ("learning rate", "gradient norm", "samples per second")
    order = sorted(panels, key=lambda title: (title != "loss", last.index(title) if title in last else -1))
    return {title: panels[title] for title in order}


def _extent(panels: Mapping[str, Sequence[Line]]) -> tuple[float, float]:
    """First and last step of all panels: they share it, so that what stands below each other happened together."""
    steps = [line[1] for lines in panels.values() for line in lines]
    return min(line[0] for line in steps), max(line[-1] for line in steps)


def _style(ink: str) -> Any:  # matplotlib types its settings name by name
    """Settings of matplotlib: its own, whatever a person's matplotlibrc says beside fonts, and these."""
    from matplotlib import rcParamsDefault

    return {key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "font."))} | {
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": ink,
        "grid.alpha": 0.12,
        "svg.fonttype": "none",
        "svg.hashsalt": "launcher",
    }


def _draw(axes: Any, title: str, lines: Sequence[Line], steps_shown: tuple[float, float]) -> None:
    import numpy as np

    for name, steps, values in lines:
        colour = EVALUATED if name.startswith(("eval/", "test/")) else TRAIN
        label = name.split("/", 1)[0] if "/" in name else name
        x, y = np.asarray(steps), np.asarray(values)
        if len(x) > 200 and colour == TRAIN and title != "learning rate":
            axes.plot(*_envelope(x, y), color=colour, alpha=0.25, linewidth=0.8)  # the noise, behind the trend
            axes.plot(*_envelope(x, _smooth(y, len(y) // 50)), color=colour, linewidth=1.6, label=label)
        else:
            marker = "o" if len(x) <= 30 else None
            axes.plot(*_envelope(x, y), color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=label)
        broken = x[~np.isfinite(y)]
        if len(broken):
            axes.axvline(broken[0], color="#cf222e", linestyle=":", linewidth=1.2, label=f"{label}: NaN or inf")
    seen = np.concatenate([np.asarray(values) for _, _, values in lines])
    seen = seen[np.isfinite(seen)]
    if len(seen) and seen.min() > 0 and seen.max() > 200 * seen.min() and title != "learning rate":
        axes.set_yscale("log")
    first, last = steps_shown
    margin = 0.02 * (last - first) or 1
    axes.set_xlim(first - margin, last + margin)
    axes.set_title(title, parse_math=False)  # a name with a $ in it is a name
    axes.set_xlabel("step")
    axes.grid(True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        for text in axes.legend(frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)


def _lay_out(axes: Any, x: float, y: float, width: float, height: float) -> None:
    """Put axes into their part of a figure, in inches, with room for title and labels.

    Matplotlib's own layouts draw everything once more to measure it: half of the time that the pictures take.
    """
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_majorticklocs() if min(low, high) <= tick <= max(low, high)]
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    letters = max((5 if "$" in label else len(label) for label in labels), default=0)  # 10 to the power of something
    left, right, bottom, top = 0.22 + 0.09 * letters, 0.12, 0.52, 0.36
    whole_width, whole_height = axes.figure.get_size_inches()
    axes.set_position(
        [
            (x + left) / whole_width,
            (y + bottom) / whole_height,
            (width - left - right) / whole_width,
            (height - bottom - top) / whole_height,
        ]
    )


def _envelope(x: Any, y: Any) -> tuple[Any, Any]:
    """The least and the greatest of each of POINTS / 2 stretches, in order: peaks survive, the cost does not grow."""
    import numpy as np

    size = -(-len(x) // (POINTS // 2))
    if size <= 2:
        return x, y
    full = len(x) // size * size
    stretches = y[:full].reshape(-1, size)
    start = np.arange(0, full, size)
    finite = np.isfinite(stretches)  # a stretch without any keeps its first, and the line is broken there
    least = start + np.where(finite, stretches, np.inf).argmin(1)
    greatest = start + np.where(finite, stretches, -np.inf).argmax(1)
    kept = np.unique(np.concatenate([least, greatest, np.arange(full, len(x))]))
    return x[kept], y[kept]


def _smooth(y: Any, width: int) -> Any:
    """Mean over `width` values around each, of those that are finite; NaN where the value itself is not."""
    import numpy as np

    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(y)) - width // 2, 0)
    high = np.minimum(np.arange(len(y)) + width // 2 + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


def _curves(run_dir: Path) -> str:
    panels = _panels(run_dir)
    if not panels:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = []
    for number, (title, lines) in enumerate(panels.items()):
        # A salt of its own: the ids of all pictures share one page.
        with rc_context(_style(INK) | {"svg.hashsalt": f"panel {number}"}):
            figure = Figure(figsize=(5.4, 3.0))
            axes = figure.add_subplot()
            _draw(axes, title, lines, _extent(panels))
            _lay_out(axes, 0, 0, 5.4, 3.0)
            figure.patch.set_alpha(0)
            for axes in figure.axes:
                axes.patch.set_alpha(0)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        picture = text.getvalue()
        picture = picture[picture.index("<svg") :].replace(INK, "currentColor")
        pictures.append(f"<figure>{picture}</figure>")
    return f'<div class="curves">{"".join(pictures)}</div>'


# What is written


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of text and figures: every cell is escaped."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(figure_text(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _tiles(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The few figures that one looks for first."""
    part = str(evaluation.get("part", "test"))
    whose = _whose(evaluation)
    figures = {f"{part} {name}{whose}": value for name, value in numbers(evaluation.get("metrics")).items()}
    final = _dict(summary, "final")
    if not figures:
        figures = {name.replace("/", " "): final[name] for name in final if name.startswith(("test/", "eval/"))}
    figures = dict(list(figures.items())[:4])
    for name in ("step", "epoch", "samples_per_second", "tokens_per_second"):
        if summary.get(name) is not None:
            figures[name.replace("_", " ")] = summary[name]
    tiles = "".join(
        f"<div><b>{escape(figure_text(value, 4))}</b><span>{escape(name)}</span></div>"
        for name, value in figures.items()
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _whose(evaluation: Mapping[str, Any]) -> str:
    """Which model was measured."""
    return f" ({evaluation.get('which', '')}, step {evaluation['step']})" if "step" in evaluation else ""


def _metrics(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    final, best = numbers(summary.get("final")), numbers(summary.get("best"))
    part = str(evaluation.get("part", "test"))
    final = final | {
        f"{part}/{name}": value
        for name, value in numbers(evaluation.get("metrics")).items()
        if f"{part}/{name}" not in final
    }
    names = list({**final, **best})
    return _table(("metric", *headings_of(summary)), ((n, final.get(n), best.get(n)) for n in names)) if names else ""


def _facts(summary: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in summary.items() if not isinstance(value, dict | list)}
    versions = _dict(summary, "versions")
    rows = [(name.replace("_", " "), value) for name, value in shown.items() if name != "status"]
    return _table((), [*rows, *versions.items()]) if rows or versions else ""


def _names(evaluation: Mapping[str, Any], count: int) -> list[str]:
    names = evaluation.get("class_names") or []
    return [str(names[place]) if place < len(names) else str(place) for place in range(count)]


def _classes(evaluation: Mapping[str, Any]) -> str:
    accuracy = evaluation.get("per_class_accuracy") or []
    counts = [sum(row) for row in evaluation.get("confusion") or []]
    rows = []
    for place, (name, value) in enumerate(zip(_names(evaluation, len(accuracy)), accuracy, strict=True)):
        share = value if isinstance(value, int | float) and math.isfinite(value) else None
        bar = f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>' if share is not None else ""
        count = str(counts[place]) if place < len(counts) else ""
        figure = f"{100 * share:.1f} %" if share is not None else "–"
        rows.append(f"<tr><td>{escape(name)}</td><td>{figure}</td><td>{bar}</td><td>{count}</td></tr>")
    if not rows:
        return ""
    head = "<tr><th>class</th><th>accuracy</th><th></th><th>samples</th></tr>"
    return f'<div class="scroll tall"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _confusion(evaluation: Mapping[str, Any]) -> str:
    matrix = evaluation.get("confusion") or []
    if not matrix:
        return ""
    names = _names(evaluation, len(matrix))
    if len(matrix) > MATRIX:
        pairs = [
            (count, names[true], names[guess])
            for true, row in enumerate(matrix)
            for guess, count in enumerate(row)
            if count and true != guess
        ]
        pairs.sort(key=lambda pair: -pair[0])
        return _table(("times", "true class", "taken for"), pairs[:30])
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in names)
    rows = []
    for true, row in enumerate(matrix):
        total = sum(row) or 1
        cells = []
        for guess, count in enumerate(row):
            share = count / total
            colour = TRAIN if true == guess else EVALUATED
            # A few errors are what one looks for: the square root lifts 1 % to a tenth of the colour.
            strength = round(100 * math.sqrt(share))
            shade = f"background:color-mix(in srgb,{colour} {strength}%,transparent)" if count else "color:var(--faint)"
            cells.append(f'<td style="{shade}" title="{100 * share:.1f} % of {escape(names[true])}">{count}</td>')
        rows.append(f"<tr><th>{escape(names[true])}</th>{''.join(cells)}</tr>")
    note = "<p>Rows: the true class. Columns: what the model said. Colour: the share of the row.</p>"
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


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


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


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
