"""benchmarks/experiments.py: what the pages of docs/concepts measure."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from options import option
from processes import REPOSITORY

from benchmarks import experiments
from launcher.config import composition
from launcher.config.command_line import parse_arguments

PAGES = REPOSITORY / "docs/concepts"
GRIDS = [(name, grid) for name, experiment in experiments.EXPERIMENTS.items() for grid in experiment.grids]


def choices(name, grid):
    """Setting -> the overrides that it is swept over."""
    words = experiments.overrides_of(experiments.EXPERIMENTS[name].grids[grid])
    return {
        own.get_key_element(): [f"{own.get_key_element()}={value}" for value in own.sweep_string_iterator()]
        if own.is_sweep_override()
        else [own.input_line]
        for own in OverridesParser.create().parse_overrides(words)
    }


@pytest.fixture(scope="module")
def compose():
    with composition.opened(parse_arguments([]), "train") as (hydra, name):
        yield lambda words: composition.compose(hydra, name, list(words))


@pytest.mark.parametrize(("name", "grid"), GRIDS, ids=[f"{name}-{grid or 'all'}" for name, grid in GRIDS])
def test_its_ends_compose(name, grid, compose):
    swept = choices(name, grid)
    seeds = [swept.pop(key, [""]) for key in ("seed", "data.split_seed")]
    assert max(map(len, seeds)) >= 3, "an experiment has three seeds"
    for words in {tuple(own[place] for own in swept.values()) for place in (0, -1)}:
        settings = compose(words).settings
        assert (settings.device, settings.threads) == ("cpu", 1)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_a_page_shows_its_experiment_and_how_to_repeat_it(name):
    text = (PAGES / f"{name}.md").read_text()
    assert f"({name}.png)" in text and f"python benchmarks/experiments.py {name}\n" in text
    assert (PAGES / f"{name}.png").stat().st_size < 80_000
    assert f"\n| {experiments.EXPERIMENTS[name].head} |" in text, "the table is that of the script"
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (PAGES / target).exists(), target


@pytest.fixture(scope="module")
def known():
    """Every setting of every option, by its dotted name, and every group."""
    names = set()
    for path in (REPOSITORY / "conf").rglob("[!_]*.yaml"):
        group = path.parent.relative_to(REPOSITORY / "conf").as_posix()
        if group == ".":
            names |= {*leaves(OmegaConf.load(path))}
        elif group not in ("experiment", "debug") and not group.startswith("hydra"):
            settings = OmegaConf.create(option(group, path.stem))
            names |= {f"{group}.{name}" for name in leaves(settings)} | {group}
    return names


def leaves(node, prefix=""):
    for key in node:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node._get_node(key)):
            yield from leaves(node[key], f"{prefix}{key}.")


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_settings_of_a_page_exist(name, known):
    table = (PAGES / f"{name}.md").read_text().partition("| setting |")[2].partition("\n\n")[0]
    named = [word for row in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(named) >= 4
    for word in named:
        assert word in known or any(setting.endswith(f".{word}") for setting in known), word


def test_a_later_override_takes_the_place_of_an_earlier_one():
    words = experiments.overrides_of(["data=digits", "seed=4", "epochs=2,5"], ["epochs=1"])
    assert "seed=4" in words and "epochs=1" in words and len(words) == len({word.split("=")[0] for word in words})


def test_the_share_of_comparisons_is_that_of_random_draws():
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1, 8), generator.normal(0.5, 1, 8)
    drawn = [
        np.mean(generator.choice(one, 3, replace=False)) < np.mean(generator.choice(other, 3, replace=False))
        for _ in range(20_000)
    ]
    assert experiments.share_below(list(one), list(other), 3) == pytest.approx(np.mean(drawn), abs=0.015)


@pytest.mark.soak
def test_one_epoch_of_the_smallest_experiment(tmp_path):
    script = str(REPOSITORY / "benchmarks/experiments.py")
    words = ["schedule", "epochs=1", "--to", str(tmp_path)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 7 and all(" ± " in row for row in rows[2:]), done.stdout
    assert sum("cosine" in row for row in rows) == 2
