"""Pictures of how a run went, from its record: curves.png, and SVG for pages."""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.core.files import replacing
from launcher.run.record import Record

POINTS = 1500  # of one line; a longer series is drawn by its envelope: more cannot be told apart at this size
TRAIN, EVALUATED = "#3987e5", "#d95926"  # told apart by the colour-blind too, on a light and on a dark ground
INK = "#010203"  # of axes and letters; in the page this becomes the colour of the text around

WIDTH, HEIGHT = 5.6, 3.1  # of a panel, in inches
BELOW, ABOVE = 0.52, 0.36  # of it, around the axes, for the labels and the title

Line = tuple[str, list[float], list[float]]  # name, steps, values


class Curves:
    """The panels of a run: loss, metrics, learning rate and speed, drawn once for all pictures.

    Making them is most of what a picture costs: a figure for each kind of picture would take twice as long.

    Args:
        run_dir: Whose record is drawn.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._figure: Any = None

    @functools.cached_property
    def panels(self) -> dict[str, list[Line]]:
        """Title of each panel to its lines."""
        return _panels(self.run_dir)

    def write_png(self, path: Path) -> Path | None:
        """All panels in one picture; None, and no file, where nothing is recorded yet."""
        if not self.panels:
            return None
        with self._styled(), replacing(path, "wb") as file:
            # Lines on white are small however they are packed: harder takes three times as long.
            self._drawn().savefig(file, dpi=120, facecolor="white", pil_kwargs={"compress_level": 3})
        return path

    def svgs(self) -> list[str]:
        """Each panel as an SVG element, in the colour of the text around."""
        if not self.panels:
            return []
        from matplotlib.transforms import Bbox

        pictures = []
        with self._styled():
            figure = self._drawn()
            for number, axes in enumerate(figure.axes):
                for other in figure.axes:
                    other.set_visible(other is axes)
                left, bottom = self._corner(number)
                # A salt of its own: the ids of all pictures share one page.
                place = Bbox.from_bounds(left, bottom, WIDTH, HEIGHT)
                pictures.append(as_svg(figure, f"panel {number}", bbox_inches=place))
            for axes in figure.axes:
                axes.set_visible(True)
        return pictures

    def _styled(self) -> Any:
        from matplotlib import rc_context

        return rc_context(style(INK))

    def _drawn(self) -> Any:
        if self._figure is None:
            from matplotlib.figure import Figure

            columns, rows = self._grid
            self._figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows))
            for number, title in enumerate(self.panels):
                _lay_out(_draw(self._figure, self.panels, title), *self._corner(number))
        return self._figure

    @property
    def _grid(self) -> tuple[int, int]:
        """Columns and rows of panels."""
        columns = min(2, len(self.panels))
        return columns, math.ceil(len(self.panels) / columns)

    def _corner(self, number: int) -> tuple[float, float]:
        """Left and lower end of a panel, in inches."""
        columns, rows = self._grid
        return WIDTH * (number % columns), HEIGHT * (rows - 1 - number // columns)


def draw_curves(run_dir: Path) -> Path | None:
    """Draw curves.png of a run directory; None: nothing is there yet."""
    return Curves(run_dir).write_png(run_dir / "curves.png")


def as_svg(figure: Any, salt: str, **how: Any) -> str:
    """A figure as an SVG element without a ground, what is drawn in INK in the colour of the text around it.

    Args:
        figure: Of matplotlib.
        salt: Of the ids in it, which all pictures of a page share: another for each.
        how: Further arguments of `savefig`.
    """
    from matplotlib import rc_context

    for drawn in (figure, *figure.axes):
        drawn.patch.set_alpha(0)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None}, **how)
    picture = text.getvalue()
    return picture[picture.index("<svg") :].replace(INK, "currentColor")


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


def style(ink: str) -> Any:  # matplotlib types its settings name by name
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
    }


def _draw(figure: Any, panels: Mapping[str, Sequence[Line]], title: str) -> Any:
    """The axes of a panel."""
    import numpy as np

    axes = figure.add_subplot()
    for name, steps, values in panels[title]:
        colour = EVALUATED if name.startswith(("eval/", "test/")) else TRAIN
        label = name.split("/", 1)[0] if "/" in name else name
        x, y = np.asarray(steps), np.asarray(values)
        if len(x) > 200 and colour == TRAIN and title != "learning rate":
            axes.plot(*envelope(x, y), color=colour, alpha=0.25, linewidth=0.8)  # the noise, behind the trend
            axes.plot(*envelope(x, _smooth(y, len(y) // 50)), color=colour, linewidth=1.6, label=label)
        else:
            marker = "o" if len(x) <= 30 else None
            axes.plot(*envelope(x, y), color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=label)
        broken = x[~np.isfinite(y)]
        if len(broken):
            axes.axvline(broken[0], color="#cf222e", linestyle=":", linewidth=1.2, label=f"{label}: NaN or inf")
    seen = np.concatenate([np.asarray(values) for _, _, values in panels[title]])
    seen = seen[np.isfinite(seen)]
    if len(seen) and seen.min() > 0 and seen.max() > 200 * seen.min() and title != "learning rate":
        axes.set_yscale("log")
    # All panels share the steps, so that what stands below each other happened together.
    everywhere = [steps for lines in panels.values() for _, steps, _ in lines]
    first, last = min(steps[0] for steps in everywhere), max(steps[-1] for steps in everywhere)
    margin = 0.02 * (last - first) or 1
    axes.set_xlim(first - margin, last + margin)
    # Both are put in place here: matplotlib would measure all letters of the axes to do so, at each drawing.
    axes.set_title(title, y=1.0, parse_math=False)  # a name with a $ in it is a name
    axes.set_xlabel("step")
    axes.xaxis.set_label_coords(0.5, -0.32 / (HEIGHT - BELOW - ABOVE))
    axes.grid(True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        for text in axes.legend(frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)
    return axes


def _lay_out(axes: Any, x: float, y: float) -> None:
    """Put axes into their panel of a figure, whose corner is given in inches, with room for title and labels.

    Matplotlib's own layouts draw everything once more to measure it: half of the time that the pictures take.
    """
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_majorticklocs() if min(low, high) <= tick <= max(low, high)]
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    letters = max((5 if "$" in label else len(label) for label in labels), default=0)  # 10 to the power of something
    left, right = 0.22 + 0.09 * letters, 0.12
    across, up = axes.figure.get_size_inches()
    corner = (x + left) / across, (y + BELOW) / up
    axes.set_position([*corner, (WIDTH - left - right) / across, (HEIGHT - BELOW - ABOVE) / up])


def envelope(x: Any, y: Any) -> tuple[Any, Any]:
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
