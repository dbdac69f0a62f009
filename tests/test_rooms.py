"""The rooms of launcher/: what may import what, and how large a file and a function may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import REPOSITORY

PACKAGE = REPOSITORY / "launcher"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
HEAVY = {"torch", "accelerate", "wandb", "sklearn", "matplotlib", "numpy", "rich"}


def lint(directory):
    """What import-linter says of the contracts in pyproject.toml, for the package in a directory."""
    words = ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run([sys.executable, *words], cwd=directory, capture_output=True, text=True)


def test_a_room_imports_from_the_rooms_below_it():
    done = lint(REPOSITORY)
    assert done.returncode == 0 and done.stdout.count("KEPT") == 2, done.stdout


def test_an_import_against_the_order_is_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    for file in FILES:
        copy = tmp_path / file.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (tmp_path / "launcher/core/files.py").write_text("def late():\n    from launcher.run import report\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "launcher.core is not allowed to import launcher.run" in done.stdout


def imported(node: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that a syntax tree imports, and whether a function does so when it is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", late) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imported(child, late or isinstance(child, FUNCTIONS))


def file_of(name: str) -> Path | None:
    """The file of launcher/ that a dotted name is in."""
    place = REPOSITORY.joinpath(*name.split("."))
    for candidate in (place.with_suffix(".py"), place / "__init__.py", place.parent.with_suffix(".py")):
        if candidate.is_file() and candidate.is_relative_to(PACKAGE):
            return candidate
    return None


@pytest.mark.parametrize("start", ["train", "__main__", *(p.stem for p in PACKAGE.glob("commands/[a-z]*.py"))])
def test_what_is_imported_before_the_checks_is_light(start):
    """The commands, and all that they import at the top, directly or not, leave torch to functions."""
    first = next(place for place in (PACKAGE / f"{start}.py", PACKAGE / f"commands/{start}.py") if place.is_file())
    seen, left = set(), [first]
    while left:
        file = left.pop()
        seen.add(file)
        names = [name for name, late in imported(ast.parse(file.read_text())) if not late]
        assert not {name.split(".")[0] for name in names} & HEAVY, file
        left += [other for name in names if (other := file_of(name)) and other not in seen]
    assert seen


def test_every_room_says_what_lives_there():
    for place in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(place.read_text())), place
        assert len(place.read_text().splitlines()) <= 10, f"{place}: a room's __init__ holds no code"


def test_the_parent_of_the_tests_processes_is_warm():
    """A module that has gone would leave out all that come after it, which each process would then import itself."""
    done = subprocess.run(
        [sys.executable, "-c", "import processes_preloaded"], cwd=REPOSITORY / "tests", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
