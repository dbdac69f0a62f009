"""Pages beside docs/: those that stand with what they are about, and one for each module, made from its docstrings.

Links between the former and docs/ hold in the site as well.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "launcher"
BESIDE = {  # where it is in the repository, and in the site
    "README.md": "reference.md",
    "CONTRIBUTING.md": "contributing.md",
    "slurm/README.md": "slurm/index.md",
    "examples/spirals/README.md": "examples/spirals/index.md",
    "examples/hydra_app/README.md": "examples/hydra_app/index.md",
}
LINK = re.compile(r"(?<=\]\()[^)\s:#]+")  # the path of a relative link, without its anchor


def modules(folder: Path = PACKAGE) -> list[Path]:
    """The public modules of a package, itself first, then files, then packages in it; all found, none named here."""
    files = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]
    inner = [path.parent for path in sorted(folder.glob("*/__init__.py")) if not path.parent.name.startswith("_")]
    return [folder / "__init__.py", *files, *(path for package in inner for path in modules(package))]


def dotted(path: Path) -> str:
    """A module's name, as it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def navigation(folder: Path = PACKAGE) -> list[Any]:
    """The pages of a package for the navigation, as deep as its folders."""
    entries: list[Any] = []
    for path in modules(folder):
        place, name = path.parent, dotted(path)
        if place == folder:
            entries.append({"Overview" if path.stem == "__init__" else path.stem: f"api/{name}.md"})
        elif path.stem == "__init__" and place.parent == folder:
            entries.append({place.name: navigation(place)})
    return entries


def page_of(path: Path) -> str:
    """The source of a module's page; of a package's, with a table of what is in it."""
    name = dotted(path)
    lines = [f"# {name}", "", f"::: {name}"]
    if path.stem == "__init__":
        rows = [one for one in modules(path.parent) if one != path and path.parent in (one.parent, one.parent.parent)]
        rows = [one for one in rows if one.parent == path.parent or one.stem == "__init__"]
        lines += ["", "| module | what |", "| --- | --- |"] if rows else []
        for one in rows:
            told = (ast.get_docstring(ast.parse(one.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            lines.append(f"| [{dotted(one)}]({dotted(one)}.md) | {told.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def on_config(config: Any) -> Any:
    """Put the pages of the modules where the navigation asks for them."""
    for entry in config.nav:
        if isinstance(entry, dict) and entry.get("API reference") == "api":
            entry["API reference"] = navigation()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what stands elsewhere, as it stands, and what is made."""
    for path, page in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for module in modules():
        files.append(File.generated(config, f"api/{dotted(module)}.md", content=page_of(module)))
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
