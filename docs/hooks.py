"""Pages that stand beside what they are about are pages of the site too; links between them and docs/ hold there."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {  # where it is in the repository, and in the site
    "README.md": "reference.md",
    "CONTRIBUTING.md": "contributing.md",
    "slurm/README.md": "slurm/index.md",
    "examples/spirals/README.md": "examples/spirals/index.md",
}
LINK = re.compile(r"(?<=\]\()[^)\s:#]+")  # the path of a relative link, without its anchor


def on_files(files: Files, config: Any) -> Files:
    """Add them as they stand."""
    for path, page in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links across the border: docs/ is the root of the site."""
    place = page.file.src_uri
    here = {page: path for path, page in BESIDE.items()}.get(place, f"docs/{place}")

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[0]))
        inside = BESIDE.get(target, target.removeprefix("docs/"))
        if inside == target:
            return found[0]  # to a file that is no page: the build says so
        return posixpath.relpath(inside, posixpath.dirname(place) or ".")

    return LINK.sub(link, markdown)
