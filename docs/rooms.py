"""Draw the rooms of launcher/, docs/rooms.png, from the order that pyproject.toml gives: python docs/rooms.py."""

import ast
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STORY = "train.py, trial.py, loop.py, build.py, check.py: the story of a run, and what it is made of."


class Room(NamedTuple):
    """A folder of launcher/, or the files beside them."""

    name: str
    about: str
    files: int
    lines: int


def room(name: str, places: list[Path], about: str) -> Room:
    """What is in some files."""
    return Room(name, about, len(places), sum(len(place.read_text().splitlines()) for place in places))


def floors() -> list[list[Room]]:
    """The rooms from top to bottom; those of one floor may import each other, where that is no circle."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    story, found = [ROOT / "launcher/__init__.py"], []
    for layer in layers:
        floor = []
        for name in (part.strip().removeprefix("launcher.") for part in layer.split(":")):
            place = ROOT / "launcher" / name
            if place.is_dir():
                about = ast.get_docstring(ast.parse((place / "__init__.py").read_text())) or ""
                floor.append(room(f"{name}/", sorted(place.rglob("*.py")), about.replace("`", "")))
            else:
                story.append(place.with_suffix(".py"))
        found.append(floor)
    rooms = [floor for floor in found if floor]
    return [rooms[0], [room("train.py", story, STORY)], *rooms[1:]]


def main() -> None:
    """A band for each floor."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    stack = floors()
    figure, axes = plt.subplots(figsize=(11, 0.55 * len(stack)), layout="constrained")
    for level, floor in enumerate(reversed(stack)):
        width = 1 / len(floor)
        for place, one in enumerate(floor):
            left = place * width
            colour = plt.get_cmap("Blues")(0.12 + 0.03 * level)
            axes.add_patch(plt.Rectangle((left + 0.003, level + 0.05), width - 0.006, 0.9, color=colour))
            axes.text(left + 0.012, level + 0.7, one.name, weight="bold", size=11, va="center")
            count = f"{one.files} files, {one.lines:,} lines"
            wrapped = textwrap.fill(one.about if len(floor) == 1 else count, int(130 * width))
            axes.text(left + 0.012, level + 0.31, wrapped, size=8.5, va="center", linespacing=1.25)
            if len(floor) == 1:
                axes.text(0.988, level + 0.7, count, size=8.5, va="center", ha="right")
    axes.set(xlim=(0, 1), ylim=(0, len(stack)))
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
