"""README, CONTRIBUTING, docs/ and the READMEs beside them: links resolve, commands are ones, the pictures are true."""

import argparse
import ast
import importlib.util
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt
from processes import REPOSITORY

from launcher.__main__ import COMMANDS
from launcher.config import composition
from launcher.config.command_line import parse_arguments, show
from launcher.config.schema import SCHEMA, SCHEMAS
from launcher.core.errors import ConfigError

PAGES = sorted(
    path
    for path in itertools.chain(*map(REPOSITORY.glob, ("*.md", "docs/**/*.md", "slurm/*.md", "examples/**/*.md")))
    if "outputs" not in path.parts
)
OPTIONS = sorted((REPOSITORY / "conf").rglob("*.yaml"))
BY_NAME = {"ids": lambda value: str(value.relative_to(REPOSITORY)) if isinstance(value, Path) else value}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@cache
def tokens(path):
    """The page as CommonMark with tables, which is what GitHub reads."""
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


def inline(path, kind):
    for token in tokens(path):
        yield from (child for child in token.children or () if child.type == kind)


# --- Links ------------------------------------------------------------------------------------------------------------


@cache
def anchors(path):
    """What a link may name in a page: its headings, spelt as GitHub does."""
    headings = [after.content for token, after in itertools.pairwise(tokens(path)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_link_leads_somewhere(page):
    links = [str(token.attrs["href"]) for token in inline(page, "link_open")]
    links += [str(token.attrs["src"]) for token in inline(page, "image")]
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(REPOSITORY) and target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_test_named_is_there(page):
    there = {path.name for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py\b", page.read_text())) <= there


def test_the_site_is_complete():
    """Every page but the README's own is in the navigation; this needs no mkdocs."""
    text = (REPOSITORY / "mkdocs.yml").read_text()
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert f": {page.relative_to(REPOSITORY / 'docs')}\n" in text, page


# --- Commands ---------------------------------------------------------------------------------------------------------

PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:python (?:-m )?[\w/.]+|launcher [a-z-]+|torchrun|accelerate launch|srun|sbatch|salloc)(?= |$)"
)
SETTINGS = re.compile(r"(?:[+~]*[a-z_]+(?:[./][\w/.@]+)*=\S+(?: |$))+")
# Settings of each data source, model or adapter that the others may lack: {"data=table": {"data.path", ...}, ...}.
SOURCES = {
    f"{group}={path.stem}": {
        f"{group}.{key}" for key in yaml.safe_load(path.read_text()) or {} if key not in ("_target_", "defaults")
    }
    for group, first in (("data", "digits"), ("model", "mlp"), ("adapter", "none"))
    for path in sorted((REPOSITORY / "conf" / group).glob("[a-z]*.yaml"), key=lambda path: path.stem != first)
}
TAKES_A_RUN = {name: SCHEMAS[name] for name in ("evaluate", "predict", "export", "rerun")}
COMPOSES: set[tuple[str | None, ...]] = set()  # what has been composed without an error
COMPOSED = ("train", "find_lr", *TAKES_A_RUN)


def blocks(path):
    """Blocks of commands of a page, without its comments."""
    for token in tokens(path):
        if token.type == "code_block" or (token.type == "fence" and token.info in ("bash", "console")):
            text = re.sub(r"\s*\\\n\s*", " ", token.content)
            yield [re.sub(r"(^|\s+)#.*", "", line).removeprefix("$ ") for line in text.splitlines()]


def commands(path):
    """Command lines of a page that start a program of this project, from blocks and from code within sentences.

    Yields:
        The line, and what the page says that it answers with, where that is an error.
    """
    lines = [line for block in blocks(path) for line in block] + [t.content for t in inline(path, "code_inline")]
    for line, after in itertools.pairwise([*lines, ""]):
        line = re.sub(r"\$\(\(.*?\)\)|\$\(.*?\)|\\?\$\w+|<[^<>]*>", "1", line)  # what a shell or a person fills in
        for part in map(str.strip, re.split(" && | [|] | > .*", line)):
            if PROGRAM.match(part) and not re.fullmatch("launcher [a-z-]+", part):
                yield part, after.removeprefix("error: ") if after.startswith("error: ") else None


def compose(program, words):
    """Compose and check a command's settings, as the program does before it begins; of a sweep each value once."""
    if program in TAKES_A_RUN:
        composition.compose_tool(program, words)
        return
    arguments = parse_arguments(words)
    if show(arguments, program):
        return
    points = [arguments.overrides]
    if arguments.multirun:
        parsed = OverridesParser.create().parse_overrides(arguments.overrides)
        fixed = [override.input_line for override in parsed if not override.is_sweep_override()]
        swept = {
            o.get_key_element(): [*map(str, (o.value().start, o.value().end))]
            if o.is_interval_sweep()
            else [*o.sweep_string_iterator()]
            for o in parsed
            if o.is_sweep_override()
        }
        first = {key: values[0] for key, values in swept.items()}
        chosen = [first | {key: value} for key, values in swept.items() for value in values] or [{}]
        points = [[*fixed, *(f"{key}={value}" for key, value in point.items())] for point in chosen]
    with composition.opened(arguments, program) as (hydra, name):
        for point in points:
            kind = (program, arguments.config_dir, *point)
            if kind not in COMPOSES:
                composition.compose(hydra, name, point, "find_lr" if program == "find_lr" else "train")
            COMPOSES.add(kind)


class Accepted(BaseException):
    """A script's own parser has taken its command line."""


def parse(program, words, monkeypatch):
    """Let a script, or a module of a command, read a command line, and end it there."""
    if isinstance(program, Path) and "argparse" not in program.read_text():
        return
    taken = argparse.ArgumentParser.parse_args

    def stop(self, *given):
        taken(self, *given)
        raise Accepted

    with monkeypatch.context() as patch, pytest.raises(Accepted):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        if not isinstance(program, Path):
            program.command(words)
        patch.setattr(sys, "argv", [str(program), *words])
        patch.setattr(sys, "path", [str(program.parent), *sys.path])
        runpy.run_path(str(program), run_name="__main__")


@cache
def options_of(program):
    """Long options that SLURM's program names in its help; None where there is no SLURM."""
    if shutil.which(program) is None:
        return None
    with tempfile.NamedTemporaryFile("w") as conf:  # without one it asks for a controller before it says anything
        conf.write("ClusterName=none\nSlurmctldHost=localhost\n")
        conf.flush()
        environment = os.environ | {"SLURM_CONF": conf.name}
        help = subprocess.run([program, "--help"], capture_output=True, text=True, env=environment, check=True).stdout
    return set(re.findall("--[a-z-]+", help))


def check(words, monkeypatch):
    """Check a command line, the programs that start others included; raises or exits where it is none."""
    words = [word for word in words if word != "..."]
    while re.match("[A-Z_]+=", words[0]):
        del words[0]
    program, *words = words
    started = any(
        word.endswith((".py", ".sbatch")) or word.startswith(("launcher", "bash", "python")) for word in words
    )
    if program in ("srun", "sbatch", "salloc"):
        script = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
        known = options_of(program)
        assert (
            known is None
            or (program == "sbatch" and not started)
            or {word.partition("=")[0] for word in words[:script]} <= known
        ), words
        if not started:
            return
        if program == "sbatch":
            assert words[script] == "slurm/train.sbatch"
            compose("train", words[script + 1 :])
        else:
            check(words[script:], monkeypatch)
    elif program == "bash":
        check(shlex.split(words[1]), monkeypatch)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        asked = get_args_parser().parse_args(words if started else [*words, "launcher/train.py"])
        check(
            ["python", *(["-m"] if asked.module else []), asked.training_script, *asked.training_script_args],
            monkeypatch,
        )
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        asked = launch_command_parser().parse_args(words[1:] if started else [*words[1:], "launcher/train.py"])
        check(
            ["python", *(["-m"] if asked.module else []), asked.training_script, *asked.training_script_args],
            monkeypatch,
        )
    elif program == "python" and words[0] == "-m":
        if words[1] == "launcher":
            check(words[1:], monkeypatch)
        elif words[1].startswith("launcher."):
            check(["python", words[1].replace(".", "/") + ".py", *words[2:]], monkeypatch)
    elif program == "python":
        script = REPOSITORY / words[0]
        assert script.is_file(), words[0]
        if script == REPOSITORY / "launcher/train.py":
            compose("train", words[1:])
        else:
            parse(script, words[1:], monkeypatch)
    else:
        assert program == "launcher" and words[0] in COMMANDS, (program, words)
        module = importlib.import_module(COMMANDS[words[0]][0])
        name = module.__name__.rpartition(".")[2]
        if name in COMPOSED:
            compose(name, [*words[1:], *(["check=true"] if words[0] == "check" else [])])
        else:
            parse(module, words[1:], monkeypatch)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the example's files, and what pages say that a person has: my/module.py, my_conf/."""
    shutil.copytree(REPOSITORY / "examples/spirals", tmp_path, dirs_exist_ok=True)
    shutil.copytree(REPOSITORY / "examples/spirals/conf", tmp_path / "my_conf")
    shutil.copytree(REPOSITORY / "conf/cluster", tmp_path / "my_conf/cluster")
    (tmp_path / "my_conf/cluster/default.yaml").rename(tmp_path / "my_conf/cluster/mysite.yaml")
    (tmp_path / "my").mkdir()
    (tracker,) = re.findall("```python\n(.*?)```", (REPOSITORY / "docs/trackers.md").read_text(), re.DOTALL)
    net = "class Net:\n    def __init__(self, in_features, num_classes, width): ...\n"
    (tmp_path / "my/module.py").write_text(net + tracker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my", "my.module", "spirals"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_command_is_one(page, project, monkeypatch):
    for command, error in dict.fromkeys(commands(page)):
        try:
            check(shlex.split(command), monkeypatch)
            found = None
        except (Exception, SystemExit) as raised:
            found = str(raised)
        assert found == error, command


GRID = REPOSITORY / "conf/hydra/sweeper/grid.yaml"


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_setting_named_is_one(page, project):
    """Overrides within sentences, such as `mixed_precision=bf16 channels_last=true`, are taken by some program."""
    for words in dict.fromkeys(token.content for token in inline(page, "code_inline")):
        if (
            not SETTINGS.fullmatch(words) or "..." in words or ",optimizer.lr=" in words
        ):  # the name of a sweep's directory
            continue
        key = words.partition("=")[0].lstrip("+")
        program = next(
            (name for name, schema in TAKES_A_RUN.items() if key in schema.keys() - {*SCHEMA, "data"}),
            "train",
        )
        needs = [f"run_dir={project}"] if program != "train" and key != "run_dir" else []
        beneath = ["hydra/launcher=slurm"] if page.parent.name == "slurm" and program == "train" else []
        if key.startswith("hydra.sweeper.") and f"\n{key.split('.')[2]}:" not in GRID.read_text():
            beneath.append("hydra/sweeper=optuna")
        own = ["--config-dir", "my_conf"] if program == "train" else []
        many = ["-m"] if program == "train" else []
        # A setting of one data source, model or adapter: the sentence before has named it.
        named = f"{key.partition('.')[0]}=" in words
        source = [option for option, takes in SOURCES.items() if key in takes][:1] if not named else []
        try:
            compose(program, [*source, *shlex.split(words), *needs, *beneath, *own, *many])
        except ConfigError as error:
            assert "is not installed: pip install" in str(error), words  # a tracker's package


@pytest.mark.soak
@pytest.mark.parametrize("path", OPTIONS, **BY_NAME)
def test_the_command_on_top_of_an_option_is_one(path, project, monkeypatch):
    text = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines()[:3] if line.startswith("# "))
    for command in re.findall(r": ((?:python|accelerate|[a-z/_]+=).*?)(?=$| [A-Z])", text):
        if PROGRAM.match(command):
            check(shlex.split(command), monkeypatch)
        elif SETTINGS.fullmatch(command):
            compose("train", [*shlex.split(command), "-m"])


@pytest.mark.parametrize("path", OPTIONS, **BY_NAME)
def test_comments_in_conf_are_aligned(path):
    """Within a paragraph they stand in one column, two spaces after the longest line that has one."""
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) <= 120
    for _, paragraph in itertools.groupby(lines, bool):
        found = [re.match(r"( *[^ #].*?)( *)# ", line) for line in paragraph]
        cut = [(len(line[1]), len(line[2])) for line in found if line]
        longest = max((code for code, _ in cut), default=0)
        assert all(code + spaces == longest + 2 for code, spaces in cut), (path, cut)


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_extra_is_one(page):
    named = set(re.findall(r"(?:launcher|\.)\[([a-z,]+)\]'", page.read_text()))
    assert {extra for names in named for extra in names.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_excerpts_are_those_of_the_example():
    """Code on the page about a project of one's own stands in the example that is tested."""
    example = "\n".join(path.read_text() for path in (REPOSITORY / "examples/spirals").rglob("*.[py]*"))
    for token in tokens(REPOSITORY / "docs/your_own.md"):
        if token.type == "fence" and token.info in ("python", "yaml"):
            for line in token.content.splitlines():
                assert line in example or line.strip().startswith("..."), line


@pytest.fixture
def checkout(tmp_path):
    """A directory that looks like the repository's root, and what runs a command there."""
    (tmp_path / "launcher").symlink_to(REPOSITORY / "launcher")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": scripts, "WANDB_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}

    def run(command):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    return tmp_path, run


@pytest.mark.soak
def test_the_quick_start_from_top_to_bottom(checkout):
    """Its commands end well, and print what the page says of the data, the model and the batches."""
    place, run = checkout
    printed = ""
    for token in tokens(REPOSITORY / "docs/quick_start.md"):
        if token.type == "fence" and token.info == "bash" and "pip install" not in token.content:
            printed = run(token.content)
        elif token.type == "fence" and token.info == "text":
            for line in token.content.splitlines():
                if re.match("data|model |batch|length|569 samples|fine|finished {3}", line):
                    wanted = line.partition("...")[0].replace("/home/you/launcher", str(place))
                    assert wanted in printed, (wanted, printed)
    assert (place / "outputs/first/report.html").is_file() and (place / "outputs/grids/models/grid.html").is_file()


@pytest.mark.soak
def test_the_commands_of_the_readme(checkout):
    """All in their order, on a run of a table; shorter. slurm/test_guide.py has those of clusters."""
    place, run = checkout
    table = "".join(f"{i % 7},{i * 2 % 5},{i % 2}\n" for i in range(80))
    (place / "new.csv").write_text(f"a,b,y\n{table}")
    run("python launcher/train.py data=csv data.path=new.csv data.target=y epochs=3 threads=1 hydra.run.dir=RUN")
    shutil.copytree(REPOSITORY / "examples/spirals/conf", place / "my_conf")
    (place / "my").mkdir()
    (place / "my/module.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, in_features, num_classes, width):\n"
        "        layers = nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, num_classes)\n"
        "        super().__init__(nn.Flatten(), *layers)\n"
    )
    done = 0
    for command in (line for block in blocks(REPOSITORY / "README.md") for line in block):
        if not re.search("^pip|^sbatch|^srun|launcher=slurm", command):
            on_cpu = "" if torch.cuda.device_count() >= 8 else "ACCELERATE_USE_CPU=1 " * ("num_processes 8" in command)
            run(on_cpu + re.sub(r"(launcher/(train|find_lr)\.py)", r"\1 threads=1 epochs=2", command))
            done += 1
        if "train.py -m" in command and "slurm" not in command:
            (sweep,) = (place / "outputs/grids").glob("*/*")
            sweep.rename(place / "outputs/grids/NAME")
    assert done >= 18 and (place / "predictions.csv").is_file() and (place / "RUN-rerun").is_dir()


# --- The site and the pictures ----------------------------------------------------------------------------------------


@pytest.mark.soak
def test_the_site_builds_without_a_warning(tmp_path):
    if None in map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    words = ["build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "reference.html", "slurm/index.html", "examples/spirals/index.html"} <= pages
    assert len(pages) >= len(PAGES)  # and its page for what is not found
    public = [path for path in (REPOSITORY / "launcher").rglob("*.py") if not re.search(r"/_(?!_init__)", str(path))]
    for path in public:
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        assert f"api/{name}.html" in pages, name
        text = (tmp_path / "site/api" / f"{name}.html").read_text()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert f'id="{name}.{node.name}"' in text, (name, node.name)
    assert len(public) > 50


def test_the_api_pages_follow_the_folders(tmp_path, monkeypatch):
    """Packages within packages: each has its place in the navigation, and tells of what is in it."""
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(REPOSITORY / "docs/hooks.py"))
    package = tmp_path / "launcher"
    for name, told in {"__init__": "All.", "train": "A | b.", "_own": "-", "core/__init__": "Core.",
                       "core/files": "Files.", "run/__init__": "Run.", "run/trackers/__init__": "Views.",
                       "run/trackers/csv": "A table."}.items():  # fmt: skip
        file = package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"""{told}\n\nMore."""\n')
    monkeypatch.setitem(hooks["dotted"].__globals__, "ROOT", tmp_path)
    assert hooks["navigation"](package) == [
        {"Overview": "api/launcher.md"}, {"train": "api/launcher.train.md"},
        {"core": [{"Overview": "api/launcher.core.md"}, {"files": "api/launcher.core.files.md"}]},
        {"run": [
            {"Overview": "api/launcher.run.md"},
            {"trackers": [
                {"Overview": "api/launcher.run.trackers.md"}, {"csv": "api/launcher.run.trackers.csv.md"},
            ]},
        ]},
    ]  # fmt: skip
    rows = hooks["page_of"](package / "__init__.py").splitlines()
    assert rows[0] == "# launcher" and "::: launcher" in rows
    assert [row for row in rows if row.startswith("| [")] == [
        "| [launcher.train](launcher.train.md) | A &#124; b. |",
        "| [launcher.core](launcher.core.md) | Core. |",
        "| [launcher.run](launcher.run.md) | Run. |",
    ]
    assert hooks["page_of"](package / "core/files.py") == "# launcher.core.files\n\n::: launcher.core.files\n"


def test_the_readme_names_every_room():
    files = (REPOSITORY / "README.md").read_text().partition("## Project layout")[2]
    rooms = {path.parent.name for path in (REPOSITORY / "launcher").glob("*/__init__.py")}
    for folder in (*rooms, "hydra_plugins", "slurm", "benchmarks", "docs", "examples", "conf", "tests"):
        assert f"{folder}/" in files, folder
