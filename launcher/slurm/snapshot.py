"""What was submitted is what runs: a copy of the code as it is now, for jobs that start later or come back."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import launcher
from launcher.core.errors import ConfigError
from launcher.run.provenance import git_commit

PACKAGE = Path(launcher.PACKAGE)
LARGEST = 20 << 20  # bytes of a file that still is code
MOST = 20_000  # files


@dataclass(frozen=True)
class Snapshot:
    """Where copies of the code are to be."""

    trees: dict[str, str]  # each directory that is copied, to its copy
    code: str  # the directory that has the package launcher, in the copy
    commit: str | None  # of the working directory's repository, with `+` where files differ from it


def none() -> Snapshot:
    """The code as it is, where it is."""
    return Snapshot({}, str(PACKAGE.parent), git_commit())


def plan(target: Path) -> Snapshot:
    """What to copy into a directory: the repository of the working directory, and that of this package.

    Of a package without a repository (installed) only itself.
    """
    here, own = _repository(Path.cwd()), _repository(PACKAGE)
    trees = {}
    for number, tree in enumerate(dict.fromkeys(tree for tree in (here, own) if tree is not None)):
        trees[str(tree)] = str(target / str(number) / tree.name)
    if own is None:
        code = target / "package"
        trees[str(PACKAGE)] = str(code / PACKAGE.name)
    else:
        code = Path(trees[str(own)]) / PACKAGE.parent.relative_to(own)
    return Snapshot(trees, str(code), git_commit())


def take(snapshot: Snapshot, outputs: Path) -> list[str]:
    """Copy what was planned, but for what is in `outputs`.

    Of a repository: the files that git tracks, as they are now, and those that it neither tracks nor ignores; so no
    data, outputs or virtual environment.

    Returns:
        The files that were left out, since they are larger than 20 MB.

    Raises:
        ConfigError: There are too many files for code.
    """
    left_out = []
    for tree, copy in snapshot.trees.items():
        if Path(tree) == PACKAGE:
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            left_out += _copy(Path(tree), Path(copy), outputs)
    return left_out


def _repository(place: Path) -> Path | None:
    """The repository whose files a place has; None where the place itself is ignored in it, or there is none."""
    top = _git(place, "rev-parse", "--show-toplevel")
    if top is None or _git(place, "check-ignore", "--quiet", str(place)) is not None:
        return None
    return Path(top.removesuffix("\n")).resolve()


def _copy(tree: Path, copy: Path, outputs: Path) -> list[str]:
    listed = _git(tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    files = [name for name in dict.fromkeys(listed.split("\0")) if name and os.path.lexists(tree / name)]
    files = [name for name in files if outputs not in (tree / name).parents]
    if len(files) > MOST:
        raise ConfigError(
            f"hydra.launcher.snapshot=true: {tree} has {len(files):,} files that git does not ignore, too many for "
            "code. List data and outputs in its .gitignore, or use hydra.launcher.snapshot=false."
        )
    left_out: list[str] = []
    copy.mkdir(parents=True)
    for name in files:
        source, place = tree / name, copy / name
        if source.is_dir() and not source.is_symlink():  # a submodule; without .git one that has not been fetched
            if (source / ".git").exists():
                left_out += _copy(source, place, outputs)
            continue
        if source.lstat().st_size > LARGEST:
            left_out.append(str(source))
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, place, follow_symlinks=False)
    return left_out


def _git(place: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None  # names of files need not be text
