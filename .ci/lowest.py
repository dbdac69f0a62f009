"""The lowest version of everything that an installation for the tests needs, as constraints for pip.

Usage: python .ci/lowest.py >lowest.txt && pip install -c lowest.txt -e '.[test]'
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(project: dict[str, Any], extra: str) -> Iterator[str]:
    """What one extra asks for, and the extras of this project that it takes in."""
    for requirement in project["optional-dependencies"][extra]:
        if taken := re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", requirement):
            for other in taken[1].split(","):
                yield from requirements(project, other)
        else:
            yield requirement


def lowest(project: dict[str, Any], extra: str) -> list[str]:
    """A line `name==version` for each requirement.

    Raises:
        ValueError: One has no lower bound.
    """
    lines = []
    for requirement in dict.fromkeys((*project["dependencies"], *requirements(project, extra))):
        bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement)
        if bound is None:
            raise ValueError(f"{requirement}: name the lowest version that works, as in torch>=2.11")
        lines.append(f"{bound[1]}=={bound[2]}")
    return lines


if __name__ == "__main__":
    print("\n".join(lowest(tomllib.loads(PYPROJECT.read_text())["project"], "test")))
