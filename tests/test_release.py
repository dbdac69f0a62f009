"""What a release is made of: its name and version in one place, its licence, and what reads them."""

import importlib
import re
import tomllib
from importlib import metadata

import pytest
import yaml
from processes import REPOSITORY

import launcher
from launcher import config, provenance

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    file = REPOSITORY / PYPROJECT["tool"]["hatch"]["version"]["path"]
    (assigned,) = re.findall(r'^__version__ = "(.+)"$', file.read_text(), re.MULTILINE)
    assert file.samefile(launcher.__file__) and assigned == launcher.__version__
    assert "version" not in yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    for heading in headings:
        assert re.search(
            rf"^\[{re.escape(heading)}\]: https://", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE
        )


def test_the_licence_is_the_one_that_is_named():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert PROJECT["license"] == citation["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert citation["title"] == PROJECT["name"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]


SAID = sorted(
    path
    for pattern in ("launcher/**/*.py", "conf/**/*.yaml", "docs/**/*.md", "*.md", "benchmarks/**/*.py", "*.yml")
    for path in REPOSITORY.glob(pattern)
)


def test_pip_is_told_the_distribution_and_an_extra_that_it_has():
    """Messages, configs and pages tell people to install extras: by the name that PyPI would find."""
    found = set()
    for path in SAID:
        for name, extras in re.findall(r"pip install (?:-e )?'?([\w.-]+)\\?\[([\w,]+)\]", path.read_text()):
            assert name in (PROJECT["name"], "."), (path, name)
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), (path, extras)
            found.add(name)
    assert found == {PROJECT["name"], "."}


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_an_extra_names_this_distribution_where_it_takes_in_another(extra):
    for requirement in PROJECT["optional-dependencies"][extra]:
        name, bracket, extras = re.split(r"[<>=\[]", requirement)[0], *requirement.partition("[")[1:]
        assert name != "launcher"
        if name == PROJECT["name"]:
            assert bracket and set(extras.rstrip("]").split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_version_that_is_told_needs_no_installation(monkeypatch):
    """PyPI has another package that is called launcher: nobody asks for its version."""
    asked = []
    monkeypatch.setattr(metadata, "version", lambda name: asked.append(name) or "1.0")
    assert provenance.summary()["versions"]["launcher"] == launcher.__version__
    with pytest.raises(SystemExit, match="0"):
        config.parse_arguments(["--version"])
    assert "torch" in asked and "launcher" not in asked


def test_every_dependency_has_one_lower_bound(monkeypatch):
    """The gate installs these together: .ci/lowest.py."""
    monkeypatch.syspath_prepend(REPOSITORY / ".ci")
    lowest = importlib.import_module("lowest").lowest
    pins = lowest(PROJECT, "test")
    names = [pin.partition("==")[0] for pin in pins]
    assert len(names) == len(set(names)) > len(PROJECT["dependencies"]) and "torch" in names and "timm" in names
    with pytest.raises(ValueError, match="numpy: name the lowest version"):
        lowest(PROJECT | {"dependencies": ["numpy"]}, "test")


def test_type_checkers_find_the_types():
    assert (REPOSITORY / "launcher/py.typed").read_bytes() == b""
