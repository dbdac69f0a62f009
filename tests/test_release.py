"""What a release is made of: its name and version in one place, its licence, and what reads them."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from processes import REPOSITORY

import launcher
from launcher.__main__ import COMMANDS
from launcher.config import command_line
from launcher.run import provenance

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
        command_line.parse_arguments(["--version"])
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


# --- What GitHub runs ------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
FILES = re.compile(r"(?<![\w./*-])(?:\.ci|tests|docs|launcher|containers|slurm|benchmarks)/[\w./-]+")


def _steps(workflow):
    for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
        yield from ((name, step) for step in job["steps"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_is_there(workflow):
    """Its scripts are bash, the files that they name exist, and the actions have a version."""
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    for _, step in _steps(workflow):
        if "uses" in step:
            assert re.search(r"@(v\d+|release/v\d+)$", step["uses"]), step
            continue
        done = subprocess.run(["bash", "-n", "-c", step["run"]], capture_output=True, text=True)
        assert done.returncode == 0, (step["run"], done.stderr)
        for file in FILES.findall(step["run"]):
            assert (REPOSITORY / file).is_file(), file
        for extras in re.findall(r"'\.\[([\w,]+)\]'", step["run"]):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), extras


def test_the_workflows_run_the_gate_the_linters_the_site_and_the_release():
    runs = {path.stem: " ".join(step.get("run", "") for _, step in _steps(path)) for path in WORKFLOWS}
    assert runs.keys() == {"tests", "lint", "docs", "release"}
    assert ".ci/run" in runs["tests"] and ".ci/lint" in runs["lint"] and "mkdocs build --strict" in runs["docs"]
    assert ".ci/lint" in (REPOSITORY / ".ci/run").read_text()
    release = yaml.safe_load((REPOSITORY / ".github/workflows/release.yml").read_text())
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    assert publish["environment"]["url"] == f"https://pypi.org/project/{PROJECT['name']}/"
    assert any("pypa/gh-action-pypi-publish" in step.get("uses", "") for step in publish["steps"])


def test_what_the_linters_are_given_is_there():
    lines = re.findall(r"^(?:shellcheck|hadolint|check-jsonschema) (.+)$", (REPOSITORY / ".ci/lint").read_text(), re.M)
    words = [word for line in lines for word in line.split() if "/" in word or word.endswith(".cff")]
    assert len(words) >= 9
    for word in words:
        assert list(REPOSITORY.glob(word)), word
    tools = " ".join(PROJECT["optional-dependencies"]["dev"])
    for tool in ("ruff", "mypy", "shellcheck", "hadolint", "check-jsonschema"):
        assert tool in tools


# --- Containers ------------------------------------------------------------------------------------------------------

DOCKERFILE = (REPOSITORY / "containers/Dockerfile").read_text()
APPTAINER = (REPOSITORY / "containers/launcher.def").read_text()


def _given_to_docker():
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    return [(line[1:], line[1:]) for line in lines if line.startswith("!")]


def _given_to_apptainer():
    section = re.search(r"^%files\n((?: +.+\n)+)", APPTAINER, re.M)[1]
    pairs = [line.split() for line in section.splitlines()]
    return [(source, target.removeprefix("/source/") or source) for source, target in pairs]


@pytest.mark.parametrize("given", [_given_to_docker, _given_to_apptainer])
def test_what_a_container_is_given_makes_the_wheel_of_the_checkout(given, tmp_path):
    """No builder of containers is needed for that: the files that it copies are built, and nothing else."""
    pytest.importorskip("hatchling")
    for source, target in given():
        place = tmp_path / "source" / target
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
        copy(REPOSITORY / source, place)
    for name, tree in (("of_these", tmp_path / "source"), ("of_checkout", REPOSITORY)):
        words = ["--disable-pip-version-check", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words, "-w", str(tmp_path / name), str(tree)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "of_these").glob("*.whl")
    assert wheel.read_bytes() == (tmp_path / "of_checkout" / wheel.name).read_bytes()


def test_both_containers_have_the_same_python_and_extras():
    images = {*re.findall(r"^FROM (\S+)", DOCKERFILE, re.M), *re.findall(r"^From: (\S+)", APPTAINER, re.M)}
    assert len(images) == 1
    assert f">={re.search(r'python:([0-9.]+)-', images.pop())[1]}" == PROJECT["requires-python"]
    (extras,) = {*re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE), *re.findall(r"EXTRAS=([\w,]+)", APPTAINER)}
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert "{{ EXTRAS }}" in APPTAINER and "${EXTRAS}" in DOCKERFILE
    assert re.search(r'CMD \["launcher", "train"', DOCKERFILE) and 'exec launcher "$@"' in APPTAINER
    assert "train" in COMMANDS and "launcher" in PROJECT["scripts"]


def test_the_definition_has_the_sections_of_apptainer():
    """Those that its documentation names; a misspelt one would be an error of the build."""
    found = re.findall(r"^%(\w+)", APPTAINER, re.M)
    assert {*found} == {"arguments", "files", "post", "environment", "runscript", "test", "labels", "help"}
    for name in ("post", "environment", "runscript", "test"):
        script = re.search(rf"^%{name}\n((?:(?: .*)?\n)+)", APPTAINER, re.M)[1]
        assert subprocess.run(["sh", "-n", "-c", script.replace("{{ EXTRAS }}", "x")]).returncode == 0, name
