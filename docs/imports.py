"""Draw which module of launcher/ imports which, docs/imports.png: python docs/imports.py."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def imported(node: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that a syntax tree imports, and whether a function does so when it is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", late) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imported(child, late or isinstance(child, FUNCTIONS))


def graph() -> dict[str, dict[str, bool]]:
    """Module to the modules it imports; True where only a function does. data/ and models/ count as one module each."""
    found: dict[str, dict[str, bool]] = {}
    for path in sorted((ROOT / "launcher").rglob("*.py")):
        module = path.relative_to(ROOT / "launcher").with_suffix("").parts[0]
        if module == "__init__":
            continue
        edges = found.setdefault(module, {})
        for name, late in imported(ast.parse(path.read_text())):
            other = [*name.split("."), ""][1]
            if name.startswith("launcher.") and other != module:
                edges[other] = edges.get(other, True) and late
    return found


def ordered(edges: dict[str, dict[str, bool]]) -> list[str]:
    """Modules, each before those that it imports; where that is a circle, the imports in functions give way.

    Raises:
        CycleError: There is a circle among the imports at the top of modules.
    """
    kept = {module: dict(others) for module, others in edges.items()}
    while True:
        try:
            return [*TopologicalSorter(kept).static_order()][::-1]
        except CycleError as error:
            circle = error.args[1]  # each imports the one before it
            if not (late := [(a, b) for b, a in pairwise(circle) if kept[a][b]]):
                raise
            del kept[late[0][0]][late[0][1]]


def main() -> None:
    """A row per module, those that import others first: a mark below the diagonal is an import against the order."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    edges = graph()
    order = ordered(edges)
    figure, axes = plt.subplots(figsize=(11, 11), layout="constrained")
    for late, marker, colour, label in ((0, "s", "C0", "when it is imported"), (1, "o", "C1", "in a function")):
        points = [(order.index(b), order.index(a)) for a in edges for b, when in edges[a].items() if when == late]
        axes.scatter(*zip(*points, strict=True), s=36, c=colour, marker=marker, label=f"{label} ({len(points)})")
    axes.plot([0, len(order) - 1], [0, len(order) - 1], color="0.8", zorder=0)
    axes.set_xticks(range(len(order)), order, rotation=90)
    axes.set_yticks(range(len(order)), order)
    axes.xaxis.tick_top()
    axes.margins(0.015)
    axes.invert_yaxis()
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", title="The module on the left imports the one above", fontsize=12, title_fontsize=12)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
