"""What Hydra's users write: idioms do what Hydra does, the same on every rank and start; the rest is one sentence."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from processes import REPOSITORY, free_port, rows, train

from launcher.__main__ import COMMANDS
from launcher.config import composition, messages
from launcher.config.command_line import parse_arguments
from launcher.config.schema import SCHEMA
from launcher.config.tree import override
from launcher.core.errors import ConfigError
from launcher.run.run_directory import read_config
from launcher.sweep import multirun
from launcher.sweep.failure import OUTPUT

SHORT = ["max_steps=3", "threads=1", "eval_every=null", "log_every=1"]
NET = """
import os, torch
from hydra.core.hydra_config import HydraConfig
class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes, place="", told=None):
        super().__init__()
        line = f"told {os.environ.get('RANK', '0')} {place} {os.path.isdir(str(place))} {told}"
        os.write(1, f"{line}\\n".encode())  # whole, beside another rank's
        if os.environ.get("BROKEN"):
            raise ValueError("broken")
        self.layer = torch.nn.Linear(in_features, num_classes)
        self.said = False
    def forward(self, x):
        if not self.said:
            self.said = True
            asked = HydraConfig.get().runtime
            print("asked", asked.output_dir, asked.choices.optimizer, flush=True)
        return self.layer(x.flatten(1))
"""
ONCE = """
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 12 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise RuntimeError("once")
        return self.layer"""
OWN = ["model._target_=net.Net", *SHORT]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def module_of(command):
    """Where a command of the console is."""
    return importlib.import_module(COMMANDS[command][0])


def compose(*words, directory=None):
    arguments = parse_arguments([*(["--config-dir", str(directory)] if directory else []), *words])
    with composition.opened(arguments, "train") as (hydra, name):
        composed = composition.compose_run(hydra, name, arguments)
        return multirun.sweep(hydra, name, arguments.overrides) if composed is None else composed


def said(*words, directory=None):
    with pytest.raises(ConfigError) as caught:
        compose(*words, directory=directory)
    text = str(caught.value)
    assert "Got NoneType" not in text and "full_key" not in text and text.count("\n") == 0 and text[-1] in ".?)", text
    return text


def written(directory):
    return read_config(directory, "run_dir")


def sweep(words, place, status=0):
    """A sweep from the command line, in a new process: it starts others that a test's own could not have."""
    command = [sys.executable, str(REPOSITORY / "launcher/train.py"), *words, "wandb.mode=disabled"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=180)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lines(run, word, rank=0):
    return [line.split() for line in run.out(rank).splitlines() if line.startswith(word)]


# --- What settings and directories say of `hydra` ------------------------------------------------------------------


def test_the_run_directory_of_a_setting_is_the_one_that_the_run_gets(place):
    """Before a model is built it is there; one that was moved is resumed where it is now."""
    words = ["+model.place=${hydra:runtime.output_dir}", *OWN]
    first = train([*words, "hydra.run.dir=outputs/fixed"], place).ok()
    (told,), (asked,) = lines(first, "told"), lines(first, "asked")
    assert told == ["told", "0", str(place / "outputs/fixed"), "True", "None"]
    assert asked == ["asked", str(place / "outputs/fixed"), "sgd"]
    assert written(place / "outputs/fixed")["model"]["place"] == "${hydra:runtime.output_dir}"
    (place / "outputs/fixed").rename(place / "moved")
    again = train([*words, "hydra.run.dir=moved"], place).ok()
    assert lines(again, "told")[0][2] == str(place / "moved") and "finished already" in again.out()


def test_a_name_made_from_the_clock_that_is_taken_is_the_next_one_in_a_setting_too(place):
    code = f"""
import sys, datetime
sys.path[:0] = [{str(REPOSITORY)!r}, {str(place)!r}]
from launcher.config import command_line, composition
from launcher.run import run_directory
from launcher.distributed.ranks import Ranks
arguments = command_line.parse_arguments({[*OWN, "+model.place=${hydra:runtime.output_dir}/x"]!r})
with composition.opened(arguments, "train") as (hydra, name):
    composed = [composition.compose(hydra, name, arguments.overrides) for _ in range(2)]
for one in composed:
    with run_directory.settled(one, Ranks(0, 1, 0, 1)) as settled:
        print(settled.used().model.place)
try:
    with run_directory.settled(composed[0], Ranks(0, 1, 0, 1)) as settled:
        raise ValueError
except ValueError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert second == first[: -len("/x")] + "_1/x" and os.path.isdir(second[:-2])
    assert len(list((place / "outputs").glob("*/*"))) == 2, "what was not built has left no directory"


def test_every_rank_has_the_settings_of_rank_0(place):
    """The clock, the environment and the run directory: the ranks start a second apart, in other environments."""
    words = ["+model.place=${hydra.runtime.output_dir}", "+model.told=${now:%H-%M-%S-%f}", *OWN]
    run = train(words, place, 2, delays=(0, 1.2)).ok()
    first, second = lines(run, "told", 0)[0], lines(run, "told", 1)[0]
    assert first[2:] == second[2:] and first[3] == "True" and first[2].startswith(str(place / "outputs"))
    (directory,) = (place / "outputs").glob("*/*")
    assert first[2] == str(directory) and written(directory)["model"]["told"] == first[4]
    again = train([*words, f"hydra.run.dir={directory}"], place, 2).ok()
    assert lines(again, "told", 1)[0][4] == first[4], "a resumed run has what the clock said at its beginning"


def test_ranks_of_an_elastic_agent_are_told_through_its_store(place):
    """torchrun holds the store itself, and keeps it when it starts a group again."""
    command = [os.path.join(os.path.dirname(sys.executable), "torchrun"), "--nproc_per_node", "2", "--master_port",
               str(free_port()), str(REPOSITORY / "launcher/train.py"), "+model.place=${hydra:runtime.output_dir}",
               "+model.told=${oc.env:RANK}", "wandb.mode=disabled", *OWN]  # fmt: skip
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("told")]
    assert len(told) == 2 and told[0] == told[1] and told[0][1:] == ["True", "0"]


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_refused_leaves_no_directory(world, place):
    words = ["+model.place=${hydra:runtime.output_dir}", "hydra.run.dir=a/b/c", *OWN]
    run = train(words, place, world, {"BROKEN": "1"}, name="../io").wait()
    assert set(run.status) == {2} and "broken" in run.err()
    assert not (place / "a").exists()
    (place / "file").write_text("")
    run = train([*words, "hydra.run.dir=file/c"], place, world, name="../io").wait()
    assert set(run.status) == {2} and "file is a file" in run.err() and "Traceback" not in run.err()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("${hydra.job.override_dirname}", "optimizer.lr=0.2,seed=3"),
        ("${hydra:job.override_dirname}", "optimizer.lr=0.2,seed=3"),
        ("${hydra.job.name}-${hydra.runtime.choices.optimizer}-${optimizer.lr}", "train-sgd-0.2"),
        ("${hydra:job.config_name}/${seed}", "train/3"),
    ],
)
def test_run_directories_that_refer_to_hydra(name, expected, tmp_path):
    """As Hydra's own documentation names them; what Hydra makes of them is asked of Hydra itself."""
    words = ["optimizer.lr=0.2", "seed=3", override("hydra.run.dir", f"runs/{name}")]
    composed = compose(*words)
    assert composed.hydra.run.dir == f"runs/{expected}" and composed.chose_directory
    (tmp_path / "train.py").write_text(f"""
import hydra
@hydra.main(version_base="1.3", config_path={str(REPOSITORY / "conf")!r}, config_name="train")
def train(config):
    print(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
train()
""")
    command = [sys.executable, "train.py", *words, "hydra/job_logging=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "runs" / expected)


def test_what_hydra_says_of_a_job_is_in_settings():
    asked = "[${hydra:job.name},${hydra.runtime.choices.optimizer},${hydra:runtime.cwd},${hydra:job.num}]"
    settings = compose("optimizer=adam", f"wandb.tags={asked.replace(',${hydra:job.num}', '')}").settings
    assert list(settings.wandb.tags) == ["train", "adam", os.getcwd()]
    assert "no job.nam" in said("wandb.name='${hydra:job.nam}'")
    assert compose("wandb.name='${hydra:job.num}'").settings.wandb.name is None, "as Hydra has it outside of a sweep"


def test_trials_know_their_number_and_directory(place):
    words = ["-m", "seed=1,2", "+model.told=${hydra:job.num}", "+model.place=${hydra:runtime.output_dir}", *OWN,
             "hydra.sweep.dir=sweeps/${hydra:job.name}", "hydra.launcher.max_parallel=1",
             "hydra.sweep.subdir=n${hydra.job.num}"]  # fmt: skip
    sweep(words, place)
    for number in (0, 1):
        trial = place / f"sweeps/train/n{number}"
        assert written(trial)["model"]["told"] == number and written(trial)["seed"] == number + 1
        (told,) = [line.split() for line in (trial / OUTPUT).read_text().splitlines() if line.startswith("told")]
        assert told == ["told", "0", str(trial), "True", str(number)]
    assert "2 finished before" in sweep(words, place).stdout


@pytest.mark.soak
def test_a_trial_keeps_the_number_that_it_began_with(place):
    """Where the sweep has grown by others before it, and where it goes on alone."""
    words = ["+model.told=${hydra:job.num}", "+model.place=${now:%f}", *OWN]
    more = ["-m", "hydra.sweep.dir=s", "hydra.launcher.max_parallel=1", "hydra.sweep.subdir=${seed}"]
    sweep([*words, *more, "seed=2,3"], place)
    first = written(place / "s/3")["model"]
    sweep([*words, *more, "seed=1,2,3"], place)
    assert written(place / "s/1")["model"]["told"] == 0 and written(place / "s/3")["model"] == first
    again = train([*words, "seed=3", "hydra.run.dir=s/3"], place).ok()
    assert lines(again, "told")[0][-1] == "1" and "finished already" in again.out()


@pytest.mark.soak
def test_trials_are_named_as_hydra_is_told_to_name_them(place):
    words = ["-m", "seed=1,2", *SHORT, "hydra.sweep.dir=s", "hydra.launcher.max_parallel=1",
             "hydra.sweep.subdir='${hydra.job.override_dirname}/seed=${seed}'", "optimizer.lr=0.2",
             "hydra.job.config.override_dirname.exclude_keys=[seed,max_steps,eval_every]",
             "hydra.job.config.override_dirname.kv_sep='-'"]  # fmt: skip
    sweep(words, place)
    assert sorted(str(path.parent.parent.relative_to(place)) for path in place.glob("s/**/.hydra/config.yaml")) == [
        "s/optimizer.lr-0.2/seed=1", "s/optimizer.lr-0.2/seed=2",
    ]  # fmt: skip


def test_a_trial_that_has_no_directory_of_its_own_is_told_from_one_that_is_there_twice(place):
    answer = sweep(["-m", "seed=1,2", "hydra.sweep.subdir=x"], place, 2).stderr
    assert "hydra.sweep.subdir gives it the directory of trial 0, x" in answer
    assert "it is the same as trial 0" in sweep(["-m", "seed=1,1"], place, 2).stderr
    assert "hydra.sweep.dir: names no directory" in sweep(["-m", "seed=1,2", "hydra.sweep.dir="], place, 2).stderr
    assert [path.name for path in place.iterdir()] == ["net.py"]


@pytest.mark.parametrize(
    "words",
    [["experiment=sweep", "epochs=1,2"], pytest.param(["hydra.mode=MULTIRUN", "seed=1,2"], marks=pytest.mark.soak)],
)
def test_a_config_that_asks_for_a_sweep_gets_one(words, place):
    (place / "mine/experiment").mkdir(parents=True)
    (place / "mine/experiment/sweep.yaml").write_text(
        '# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: "1,2"\n'
    )
    sweep(["--config-dir", "mine", *words, *SHORT, "hydra.sweep.dir=s", "hydra.launcher.max_parallel=2"], place)
    assert len(list(place.glob("s/*/summary.json"))) == (4 if "epochs=1,2" in words else 2)


def test_variables_that_hydra_is_to_set(place):
    run = train(["+hydra.job.env_set.BROKEN=${seed}", *OWN], place).wait()
    assert run.status == [2] and "broken" in run.err()
    assert "no variable 'ABSENT'" in said("hydra.job.env_copy=[ABSENT]")


# --- Launchers that would train nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["optimizer.lr=-1"]])
def test_a_launcher_of_others_is_refused_before_anything_is_made(more, place):
    answer = sweep(["-m", "hydra/launcher=basic", "seed=1,2", *SHORT, *more], place, 2).stderr
    assert "hydra/launcher=basic" in answer and "hydra/launcher=local" in answer
    assert [path.name for path in place.iterdir()] == ["net.py"]


@pytest.mark.soak
def test_a_primary_config_of_ones_own_is_told_which_launcher_it_lacks(place):
    (place / "mine").mkdir()
    text = (REPOSITORY / "conf/train.yaml").read_text().replace("  - override hydra/launcher: local\n", "")
    (place / "mine/mine.yaml").write_text(text)
    words = ["-m", "--config-dir", "mine", "--config-name", "mine", "seed=1,2", *SHORT]
    assert "`- override hydra/launcher: local`" in sweep(words, place, 2).stderr
    sweep([*words, "hydra/launcher=local", "hydra/sweeper=basic", "hydra.sweep.dir=s"], place)
    assert len(list(place.glob("s/*/summary.json"))) == 2


@pytest.mark.parametrize("kind", ["launcher", "sweeper"])
def test_a_plugin_that_is_none(kind):
    with pytest.raises(ConfigError, match=f"hydra/{kind}"):
        compose("-m", f"hydra.{kind}._target_=os.system", "seed=1,2")


@pytest.mark.parametrize("word", ["hydra/launcher=slurm", "hydra.launcher.devices=2", "cluster.partition=gpu"])
def test_what_is_about_a_sweep_is_refused_of_one_run(word):
    assert word in said(word) and "Add -m" in said(word)


# --- Words that do not compose ---------------------------------------------------------------------------------------

ANSWERS = {
    "~scheduler": ["~scheduler", "scheduler=constant"],
    "~optimizer": ["~optimizer", "optimizer=sgd"],
    "~wandb": ["~wandb", "wandb.mode=disabled"],
    "~epochs": ["~epochs", "whole number"],
    "~mixup.alpha": ["~mixup.alpha", "number"],
    "~nothing": ["~nothing", "no such setting"],
    "~seed=3": ["~seed=3", "its value is 0"],
    "experiment=null": ["experiment=null", "leave experiment out", "text"],
    "experiment=": ["experiment=:", "names no option", "text"],
    "optimizer=null": ["optimizer=null", "adamw", "a run needs one"],
    "optimizer=": ["optimizer=:", "adamw"],
    "scheduler=null": ["scheduler=null", "scheduler=constant"],
    "batch=null": ["batch=null", "batch=default"],
    "cluster=null": ["cluster=null", "default"],
    "+experiment=x": ["experiment=x", "no such option"],
    "+experiment=text": ["+experiment=text", "write experiment=text"],
    "batch=32": ["batch=32", "batch.global_size=32"],
    "optimizer=0.1": ["optimizer=0.1", "optimizer.lr=0.1"],
    "scheduler=10": ["scheduler=10", "cosine"],
    "model=3": ["model=3", "mlp"],
    "optimizer=true": ["optimizer=true", "adamw"],
    "early_stopping=null": ["early_stopping=null", "early_stopping.metric=null"],
    "early_stopping=eval/loss": ["early_stopping=eval/loss", "early_stopping.metric=eval/loss"],
    "mixup=null": ["mixup=null", "mixup.alpha=0"],
    "mixup=0.2": ["mixup=0.2", "mixup.alpha=0.2"],
    "checkpoint=null": ["checkpoint=null", "checkpoint.every=null"],
    "checkpoint=5": ["checkpoint=5", "checkpoint.every=5"],
    "divergence=null": ["divergence=null", "divergence.action=stop"],
    "wandb=null": ["wandb=null", "wandb.mode=disabled"],
    "wandb=disabled": ["wandb=disabled", "wandb.mode=disabled"],
    "wandb=false": ["wandb=false", "wandb.mode=disabled"],
    "epochs='3'": ['epochs="3"', "This is a text", "oc.decode"],
    "clip_grad_norm='null'": ['clip_grad_norm="null"', "This is a text"],
    "compile='true'": ['compile="true"', "This is a text"],
    "epochs=${oc.env:FIVE}": ['epochs="5"', "'${oc.decode:${oc.env:NAME}}'"],
    "optimizer.lr=${oc.env:ABSENT}": ["optimizer.lr", "no variable ABSENT"],
    "optimizer.lr=${absent}": ["optimizer.lr", "${absent}"],
    "optimizer.lr=${absent:1}": ["optimizer.lr", "absent", "resolver"],
    "seed=1,2": ["seed=1,2", "-m"],
    "seed=range(3)": ["seed=range(3)", "-m"],
    "+epochs=3": ["epochs", "without the plus"],
    "optimizer@x=sgd": ["optimizer@x", "optimizer=..."],
    "hydra.run.dir=x/${hydra:runtime.output_dir}": ["hydra.run.dir", "itself"],
    "hydra.run.dir=x/${hydra.runtime.output_dir}": ["hydra.run.dir", "itself"],
    "hydra.run.dir=null": ["hydra.run.dir=null"],
    "hydra.run.dir=": ["hydra.run.dir", "names no directory"],
    "hydra.nothing=1": ["hydra.nothing", "--cfg hydra"],
    "hydra.job.chdir=true": ["hydra.job.chdir=true", "${hydra:runtime.output_dir}"],
    "hydra.output_subdir=null": ["hydra.output_subdir=null", ".hydra"],
    "+hydra.callbacks.x._target_=builtins.print": ["hydra.callbacks"],
    "limit_val_batches=1": ["limit_val_batches", "Use limit_batches=1."],
    "+limit_val_batches=1": ["limit_val_batches", "Use limit_batches=1."],
    "fast_dev_run=true": ["fast_dev_run", "debug=fdr"],
    "batch_size=32": ["batch_size", "batch.global_size=32"],
    "+batch_size=32": ["batch_size", "batch.global_size=32"],
    "trainer.max_epochs=3": ["trainer.max_epochs", "epochs=3"],
    "+epochz=3": ["epochz", "Did you mean epochs?"],
    "+checkpoint.foo=1": ["checkpoint.foo", "checkpoint has: every"],
    "+checkpoint.evry=1": ["checkpoint.evry", "checkpoint.every"],
    "+wandb.foo=1": ["wandb.foo", "project"],
    "+batch.foo=1": ["batch.foo", "global_size"],
    "+strategy.foo=1": ["strategy.foo"],
    "+mixup.foo=1": ["mixup.foo", "cutmix_alpha"],
    "+foo=1": ["foo", "no such setting"],
    "+foo={bar: 1}": ["foo", "no such setting"],
    "model.foo=1": ["model.foo", "+model.foo=1"],
    "wandb.name='\\${x}'": ["wandb.name=${x}", "a reference"],
    "--resolve": ["--resolve", "--cfg job"],
    "--package=optimizer": ["--package", "--cfg job"],
    "sgd": ["sgd", "key=value", "optimizer=sgd"],
    "lr": ["lr", "optimizer.lr=VALUE"],
    "=3": ["=3", "key=value"],
    "--lr": ["--lr", "optimizer.lr=VALUE"],
    "--batch-size=8": ["--batch-size=8", "batch.global_size=8"],
    "--experiment=text": ["--experiment=text", "as experiment=text"],
    "--experimental-rerun=runs/a/.hydra/config.pickle": ["--experimental-rerun", "launcher rerun runs/a"],
}


@pytest.mark.parametrize("word", ANSWERS)
def test_what_does_not_compose_is_answered_in_a_sentence(word, monkeypatch):
    monkeypatch.setenv("FIVE", "5")
    text = said(word)
    for expected in ANSWERS[word]:
        assert expected in text, text


def test_what_is_right_after_all(monkeypatch):
    """What the answers above suggest, and settings that something refers to."""
    monkeypatch.setenv("FIVE", "5")
    assert compose("epochs='${oc.decode:${oc.env:FIVE}}'").settings.epochs == 5
    assert compose("+rate=0.2", "optimizer.lr=${rate}").settings.optimizer.lr == 0.2
    assert compose("+strategy.bucket_cap_mb=50").settings.strategy.bucket_cap_mb == 50
    assert compose("optimizer={lr: 0.3}").settings.optimizer.lr == 0.3, "a form that Hydra's grammar has"
    assert compose("+model.made=a", "wandb.name='${model.made}'").settings.wandb.name == "a"


FILES = {
    "typo.yaml": ("# @package _global_\nepoch: 3\n", ["epoch", "epochs"]),
    "nobody.yaml": ("epochs: 3\n", ["experiment=nobody", "# @package _global_"]),
    "list.yaml": ("- 1\n", ["experiment=list", "# @package _global_"]),
    "broken.yaml": ("# @package _global_\nepochs: [3\n", ["broken.yaml", "line", "no YAML"]),
    "group.yaml": ("# @package _global_\ndefaults:\n  - override /optimiser: sgd\n", ["group.yaml", "optimizer?"]),
    "option.yaml": ("# @package _global_\ndefaults:\n  - override /optimizer: sgdd\n", ["optimizer=sgdd", "sgd?"]),
    "section.yaml": ("# @package _global_\nwandb: null\n", ["wandb=null", "wandb.mode=disabled"]),
    "quoted.yaml": ("# @package _global_\nepochs: '3'\n", ['epochs="3"', "This is a text"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_ones_own_are_answered_alike(name, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / name).write_text(FILES[name][0])
    text = said(f"experiment={name.removesuffix('.yaml')}", directory=tmp_path)
    for expected in FILES[name][1]:
        assert expected in text, text


def test_a_composed_config_has_no_groups_to_choose_from(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(compose().settings))
    words = ["--config-name", "config"]
    text = said(*words, "optimizer=adam", directory=tmp_path)
    assert "no group 'optimizer'" in text and "launcher rerun" in text
    assert compose(*words, "optimizer.lr=0.2", directory=tmp_path).settings.optimizer.lr == 0.2


def test_every_advice_names_a_setting_that_there_is():
    known = {*SCHEMA, *("hydra.run.dir", "data.root", "data.path", "data.image_size"), *(
        "scheduler.warmup", "scheduler.eta_min", "optimizer.betas", "loss.weight", "model.name")}  # fmt: skip
    for name, advice in messages.aliases().items():
        assert " " in advice or advice in known, f"{name}: {advice}"
        assert name not in SCHEMA or "." in name, f"{name} is a setting itself"


def test_version_is_that_of_the_launcher_and_what_it_stands_on():
    done = subprocess.run([sys.executable, "launcher/train.py", "--version"], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.startswith("launcher ") and "hydra-core " in done.stdout and "torch " in done.stdout
    assert done.stdout.count("\n") == 1


# --- Names that are too long -----------------------------------------------------------------------------------------

NAME, PATH = "a" * 300, "/".join(["a" * 200] * 30)


@pytest.mark.parametrize("long", [NAME, PATH, f"x/{NAME}", "'" + "ü" * 140 + "'"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train", ["hydra.run.dir=LONG"]), ("train", ["check=true", "hydra.run.dir=LONG"]),
        ("train", ["init_from=LONG"]),
        ("train", ["-m", "seed=1", "hydra.sweep.dir=LONG"]), ("train", ["-m", "seed=1", "hydra.sweep.subdir=LONG"]),
        ("find-lr", ["hydra.run.dir=LONG"]), ("evaluate", ["run_dir=LONG"]), ("predict", ["run_dir=x", "output=LONG"]),
        ("export", ["run_dir=x", "output=LONG"]), ("rerun", ["run_dir=x", "output=LONG"]),
        ("train", ["data=image_folder", "data.root=LONG"]), ("train", ["model=timm", "model.checkpoint=LONG"]),
    ],
)  # fmt: skip
def test_a_name_that_no_file_system_takes(program, words, long, monkeypatch):
    words = [word.replace("LONG", long) for word in words]
    with pytest.raises(ConfigError) as caught:
        module_of(program).command(words)
    text = str(caught.value)
    assert words[-1].partition("=")[0] in text and "bytes" in text and len(text) < 300, text


def test_a_name_that_gets_too_long_where_it_is_resolved(tmp_path):
    """By what it refers to, in a file, as a trial's."""
    long = "x" * 200
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*bytes"):
        compose("seed=1", f"wandb.name={long}", "hydra.run.dir=runs/${wandb.name}-${wandb.name}")
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\ndata:\n  root: {NAME}\n"
    (tmp_path / "experiment/long.yaml").write_text(text)
    words = ["--config-dir", ".", "experiment=long", "data=image_folder"]
    answer = train(words, tmp_path, name="../io").wait()
    assert answer.status == [2] and "data: File name too long" in answer.err() and len(answer.err()) < 300
    done = sweep(["-m", "seed=1,2", f"wandb.name={long}", "hydra.sweep.subdir='${seed}${wandb.name}${wandb.name}'"],
                 tmp_path, 2)  # fmt: skip
    assert "trial 0" in done.stderr and "hydra.sweep.subdir" in done.stderr and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("program", ["evaluate", "predict", "export", "rerun", "find-lr"])
def test_a_command_that_takes_one_run_takes_no_sweep(program):
    with pytest.raises(ConfigError, match=r"^-m: "):
        module_of(program).command(["-m", "run_dir=x"])


@pytest.mark.soak
def test_a_group_that_starts_again_goes_on_in_the_directory_of_its_settings(place):
    """torchrun starts the ranks anew: the run, its directory and what the clock said are those of the first start."""
    failing = NET.replace("return self.layer", ONCE)
    (place / "once.py").write_text(failing)
    torchrun = os.path.join(os.path.dirname(sys.executable), "torchrun")
    command = [torchrun, "--nproc_per_node", "2", "--max_restarts", "1", "--master_port", str(free_port()),
               str(REPOSITORY / "launcher/train.py"), "model._target_=once.Net", "+model.told=${now:%f}",
               "+model.place=${hydra:runtime.output_dir}", "wandb.mode=disabled", "threads=1", "max_steps=15",
               "checkpoint.every=2", "eval_every=null"]  # fmt: skip
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    told = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("told")]
    assert len(told) == 4 and len({tuple(one) for one in told}) == 1 and "resumed" in done.stdout
    assert len(list((place / "outputs").glob("*/*"))) == 1


# --- A class in the place of an option's -----------------------------------------------------------------------------

CLASSES = """
import torch
class Loss(torch.nn.Module):
    def forward(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
class Descent(torch.optim.SGD):
    def __init__(self, params, mine=1, **others):
        super().__init__(params, **others)
class Any(torch.nn.Module):
    def __init__(self, num_outputs, **others):
        super().__init__()
        assert set(others) <= {"own"}, others
        self.layer = torch.nn.Linear(64, num_outputs)
    def forward(self, inputs):
        return self.layer(inputs.flatten(1))
"""


def test_inherited_keys_go_where_the_class_does_not_name_them(tmp_path, monkeypatch):
    (tmp_path / "classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    assert dict(compose("loss._target_=classes.Loss").settings.loss) == {"_target_": "classes.Loss"}
    kept = compose("optimizer._target_=classes.Descent").settings.optimizer
    assert kept.lr == 0.1 and kept.momentum == 0.9 and "fused" in kept, "named by the base that **others reaches"
    assert dict(compose("model._target_=torchvision.models.resnet18").settings.model) == {
        "_target_": "torchvision.models.resnet18"
    }
    assert dict(compose("model._target_=classes.Any", "+model.own=1").settings.model) == {
        "_target_": "classes.Any", "own": 1
    }  # fmt: skip
    assert list(compose("model._target_=classes.Any", "model.hidden=[3]").settings.model.hidden) == [3]
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nmodel:\n  _target_: classes.Any\n  hidden: [256]\n"
    (tmp_path / "experiment/own.yaml").write_text(text)
    own = compose("experiment=own", directory=tmp_path).settings.model
    assert dict(own) == {"_target_": "classes.Any", "hidden": [256]}, "the default's value, and yet set by the person"
    shipped = compose("experiment=fashion_mnist", "model._target_=classes.Any").settings.model
    assert dict(shipped) == {"_target_": "classes.Any"}


def test_such_classes_train(tmp_path):
    (tmp_path / "classes.py").write_text(CLASSES)
    words = ["loss._target_=classes.Loss", "optimizer._target_=classes.Descent", "model._target_=classes.Any"]
    train([*words, *SHORT, "hydra.run.dir=run"], tmp_path).ok()
    assert len(rows(tmp_path / "run")) == 3
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
