"""Finding images in a folder per class, each once, and saying what was left aside."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.data.table_statistics import doubts

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision has them
LEFT_BY_OTHERS = ("__MACOSX", "@eaDir")  # archives and file servers; notebooks and file managers hide theirs


class Folders:
    """The images of the classes and splits under a folder, `root`.

    Links are followed, but neither back to a folder around them nor to what was found already.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._left: Counter[str] = Counter()
        self.empty: list[str] = []  # folders of training that hold no image, and are no classes
        self._owner: dict[str, tuple[str, str]] = {}  # of a real folder, or of a file behind a link: split and class
        self._linked = False  # whether a file was found by a link

    @staticmethod
    def within(place: Path) -> list[Path]:
        """The folders in a folder that are not hidden, by name."""
        return sorted(Path(entry.path) for entry in _entries(place) if entry.is_dir() and not _hidden(entry.name))

    @staticmethod
    def called(places: Sequence[Path], names: Sequence[str]) -> Path | None:
        """The folder that has the first of some names, in these letters or in other cases."""
        for name in map(str, names):
            alike = [place for place in places if place.name.casefold() == name.casefold()]
            if alike:
                return min(alike, key=lambda place, name=name: (place.name != name, place))  # type: ignore[misc]
        return None

    def classes(self, split: str, place: Path) -> dict[str, list[str]]:
        """The images of each class of a split, in the order of their paths; a folder without one is no class."""
        for entry in _entries(place):
            if _hidden(entry.name):
                self._left["hidden files and folders"] += 1
            elif not entry.is_dir():
                self._left["files outside of the folder of a class"] += 1
        found = {}
        for folder in self.within(place):
            images = self.images(folder, (split, folder.name))
            if images:
                found[folder.name] = images
            elif split == "train":
                self.empty.append(f"{place.name}/{folder.name}")
            else:
                self._left["folders without an image"] += 1
        return found

    def images(self, folder: Path, owner: tuple[str, str] = ("", "")) -> list[str]:
        """The images in a folder, at any depth, for a split and a class.

        Raises:
            ConfigError: A folder cannot be read; or by a link one is in two classes, or in training and measured on.
        """
        found: list[tuple[str, list[str]]] = []
        waiting = [str(folder)]
        while waiting:
            place = waiting.pop()
            real = os.path.realpath(place)
            if not self._claim(place, real, owner):
                continue
            names = []
            for entry in _entries(Path(place)):
                name = entry.name
                if name.lower().endswith(ENDINGS) and not _hidden(name) and entry.is_file(follow_symlinks=False):
                    if not self._linked or self._free(os.path.join(real, name), None, owner):
                        names.append(name)
                elif _hidden(name):
                    self._left["hidden files and folders"] += 1
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif not name.lower().endswith(ENDINGS):
                    ending = os.path.splitext(name)[1].lower()
                    self._left[f"{ending} files" if ending else "files without an ending"] += 1
                elif not entry.is_file():
                    self._left["broken links"] += 1
                elif self._claim(entry.path, os.path.realpath(entry.path), owner):
                    self._linked = True
                    names.append(name)
            found.append((place, sorted(names)))
        return [os.path.join(place, name) for place, names in sorted(found) for name in names]

    def told(self) -> list[str]:
        """Lines about what was left aside, where anything was."""
        notes = []
        if self.empty:
            named = ", ".join(self.empty[:5]) + (f" and {len(self.empty) - 5} more" if len(self.empty) > 5 else "")
            notes.append(f"no classes, as there is no image ({', '.join(ENDINGS)}) in them: {named}")
        left = ", ".join(f"{count:,} {what}" for what, count in sorted(self._left.items()) if count)
        return [*notes, f"left aside under {self.root}: {left}"] if left else notes

    def _claim(self, place: str, real: str, owner: tuple[str, str]) -> bool:
        """Take a real folder, or a file behind a link, for a class. False where it is not to be looked at."""
        if os.path.islink(place) and os.path.commonpath([real, os.path.realpath(os.path.dirname(place))]) == real:
            self._left["links to a folder around them"] += 1
            return False
        free = self._free(real, os.path.dirname(real) if os.path.islink(place) else None, owner)
        self._owner.setdefault(real, owner)
        return free

    def _free(self, real: str, around: str | None, owner: tuple[str, str]) -> bool:
        """Whether nobody has it yet, nor the folder around it; False where this class has, an error where another."""
        other = self._owner.get(real) or (None if around is None else self._owner.get(around))
        if other is None:
            return True
        if other == owner:
            self._left["links to what is there already"] += 1
            return False
        if other[1] != owner[1] or "train" in (other[0], owner[0]):
            raise ConfigError(
                f"data.root: {real} is in {'/'.join(other)} and, by a link, in {'/'.join(owner)} of {self.root}. "
                "Remove the link: nothing is of two classes, and what is learned from cannot be measured on."
            )
        return True


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except OSError as error:
        raise ConfigError(f"data.root: cannot read {place}: {error.strerror}.") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BY_OTHERS


TRAIN = ("train", "training")


def find(
    root: Path, validation_folders: Sequence[str], test_folders: Sequence[str]
) -> tuple[list[str], dict[str, list[tuple[str, int]]], list[str]]:
    """Find the images of the classes.

    Returns:
        The names of the classes; the (file, class) of each image of the splits that have a folder; lines for the log.

    Raises:
        ConfigError: A folder is missing or empty, or a split has a class that training does not have.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root: there is no directory {root}.")
    folders, there, notes = Folders(root), Folders.within(root), []
    names = {"train": TRAIN, "test": test_folders, "validation": validation_folders}
    chosen = {split: place for split, of in names.items() if (place := Folders.called(there, of)) is not None}
    if "train" not in chosen:
        if chosen or not there:
            raise ConfigError(
                f"data.root: {root} has no folder train; put the images of each class into train/CLASS in it, or into "
                "CLASS in it and nothing else."
            )
        chosen["train"] = root
        notes.append(f"{root} has no folder train: its folders are the classes, and all splits are split off them")
    elif aside := [place.name for place in there if place not in chosen.values()]:
        notes.append(f"left aside under {root}: the folders {', '.join(aside)}")
    found = {split: folders.classes(split, place) for split, place in chosen.items()}
    classes, train = list(found["train"]), chosen["train"]
    nested = [inner.parent for place in there for inner in Folders.within(place) if inner.name.casefold() in TRAIN]
    hint = f" There is no image ({', '.join(ENDINGS)}) in {folders.empty[0]}." if folders.empty else ""
    hint += f" Is data.root={nested[0]} meant?" if nested else ""
    if len(classes) < 2:
        raise ConfigError(f"data.root: {train} has one class, {classes[0]!r}; at least two are needed.{hint}"
                          if classes else f"data.root: {train} has no folder of a class.{hint}")  # fmt: skip
    samples = {}
    for split, of_class in found.items():
        if new := [name for name in of_class if name not in classes]:
            raise ConfigError(
                f"data.root: {chosen[split]} has the class folder {new[0]!r}, which {train} does not have; "
                f"that has: {', '.join(classes)}."
            )
        samples[split] = [(path, classes.index(name)) for name, paths in of_class.items() for path in paths]
        if not samples[split]:
            raise ConfigError(
                f"data.root: {chosen[split]} has no images; fill it, or remove it to split them off train."
            )
    return classes, samples, [*notes, *folders.told(), *doubts(classes)]
