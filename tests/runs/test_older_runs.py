"""An update of the launcher does not part anyone from their runs: a setting that a run was made without is neutral."""

import json
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from processes import REPOSITORY, command, rows, train

from launcher.commands import rerun
from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.config.components import COMPONENTS
from launcher.config.differences import differences
from launcher.config.migrations import VERSION
from launcher.config.schema import FOUNDING, SCHEMA
from launcher.config.tree import UNSTATED, leaves
from launcher.data.source import build_data
from launcher.run import saved
from launcher.run.config_file import read_config
from launcher.run.earlier_run import check_same

TABLE = "a,b,y\n" + "".join(f"{i % 7},{i * 2 % 5},{i % 2}\n" for i in range(60))
RUN = ["data=csv", "data.path=table.csv", "data.target=y", "epochs=3", "threads=1", "checkpoint.every=1",
       "eval_every=1", "hydra.run.dir=run"]  # fmt: skip
STATED = [key for key, known in SCHEMA.items() if known.absent is not UNSTATED]
LATER = [key for key in STATED if key.partition(".")[0] not in COMPONENTS]
# The settings of the very first commit, without which nobody ever trained.
FIRST = {
    "epochs", "max_steps", "max_time", "seed", "mixed_precision", "clip_grad_norm", "decay_bias_and_norm", "compile",
    "deterministic", "device", "threads", "num_workers", "timeout", "log_every", "eval_every", "metrics",
    *(f"checkpoint.{key}" for key in ("every", "keep", "best", "best_mode", "max_failures")),
    *(f"wandb.{key}" for key in ("mode", "project", "entity", "name", "group", "tags")),
    *(f"batch.{key}" for key in ("global_size", "max_per_device", "lr_scaling", "base_size")),
    *(f"strategy.{key}" for key in ("name", "find_unused_parameters", "gradient_as_bucket_view")),
}  # fmt: skip


def compose(*words):
    arguments = parse_arguments(list(words))
    with composition.opened(arguments, "train") as (hydra, name):
        return composition.compose(hydra, name, arguments.overrides)


def forget(run, *keys):
    """Take settings out of a run's config.yaml, and sections that are empty then."""
    file = run / ".hydra/config.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(file))
    for key in keys:
        group, _, leaf = key.partition(".")
        if leaf and isinstance(settings.get(group), dict):
            settings[group].pop(leaf, None)
        elif not leaf:
            settings.pop(group, None)
    settings = {key: value for key, value in settings.items() if value != {} or key == "data"}
    OmegaConf.save(OmegaConf.create(settings), file)
    return settings


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run that was stopped before its end, by a limit that a later start lifts."""
    directory = tmp_path_factory.mktemp("older")
    (directory / "table.csv").write_text(TABLE)
    train([*RUN, "scheduler=constant", "epochs=2"], directory).ok()
    return directory


@pytest.fixture
def older(original, tmp_path):
    shutil.copytree(original, tmp_path / "there", symlinks=True)
    return tmp_path / "there"


def test_every_setting_of_the_launcher_says_what_its_absence_means():
    for key in SCHEMA:
        group = key.partition(".")[0]
        leaf = not SCHEMA[key].section
        if leaf and group not in COMPONENTS and key not in (*FOUNDING, "strategy.bucket_cap_mb",
                                                                   "strategy.broadcast_buffers"):  # fmt: skip
            assert key in STATED, f"{key}: say what a run without it does"
            assert SCHEMA[key].fits(SCHEMA[key].absent)


def test_what_absence_means_is_what_the_defaults_do_that_are_shipped():
    """So far no default was changed since its setting came; the one that will be keeps its neutral value here."""
    for option in ("ddp", "fsdp"):
        settings = leaves(compose(f"strategy={option}").plain())
        for key in LATER:
            if key in settings and key != "strategy.name":
                assert settings[key] == SCHEMA[key].absent, key
    assert {key.partition(".")[0] for key in LATER} | {*COMPONENTS, "epochs", "seed", "batch"} == set(compose().plain())


@pytest.mark.parametrize("key", LATER)
def test_a_run_without_one_setting_is_taken_up_and_resumed(key, older, monkeypatch):
    monkeypatch.chdir(older)
    words = [*RUN, "scheduler=constant", "epochs=2", "wandb.mode=disabled"]
    before = saved.open_run("run")[1]
    forget(older / "run", key)
    changed = {"checkpoint.every": 1, "eval_every": 1, "threads": 1, "wandb.mode": "disabled"}
    after = saved.open_run("run")[1]
    if key in changed:
        group, _, leaf = key.partition(".")
        (after[group] if leaf else after)[leaf or group] = changed[key]
    assert after == before
    if key not in changed:
        then = read_config(older / "run", "run_dir")
        check_same(older / "run", then, compose(*words))
        assert rerun.compose_again(older / "run", None).plain() == then | before


@pytest.mark.parametrize("key", FOUNDING)
def test_what_every_run_has_is_missed_in_a_sentence(key, older):
    forget(older / "run", key)
    for program, words in (("evaluate", ["run"]), ("rerun", ["run", "dry_run=true"])):
        answer = command(program, words, older, name="../io").wait()
        assert answer.status == [2] and f"has no {key}" in answer.err() and "Traceback" not in answer.err()
    if key == "epochs":  # which a resumed run may have others of
        return
    answer = train([*RUN, "scheduler=constant"], older, name="../io").wait()
    assert answer.status == [2] and f"{key}" in answer.err() and "Traceback" not in answer.err(), answer.err()


WITHOUT = {
    "what came after the first commit": [key for key in LATER if key not in FIRST],
    "all that has a neutral value": [key for key in LATER if key not in ("eval_every", "checkpoint.every")],
    "the newest": ["early_stopping", "mixup", "sampling", "freeze", "layer_decay", "init_from", "clip_grad_value"],
    "metrics": ["metrics"],
    "a section": ["divergence"],
    "strategy": ["strategy"],
    "wandb": ["wandb"],
}


@pytest.mark.parametrize("what", [*WITHOUT][:2])
def test_each_command_takes_up_an_older_run(what, older):
    settings = forget(older / "run", *WITHOUT[what])
    assert "mixup" not in settings and "sampling" not in settings
    said = {}
    for program, words in (
        ("evaluate", ["run"]), ("predict", ["run_dir=run", "input=table.csv"]), ("export", ["run"]),
        ("rerun", ["run", "output=again"]),
    ):  # fmt: skip
        said[program] = command(program, words, older, name=f"../io-{program}").ok().out()
    assert "mixup.alpha: no such setting then, 0 now" in said["rerun"]
    assert (older / "predictions.csv").exists() and (older / "run/export/README.md").exists()
    assert rows(older / "again") == rows(older / "run"), "the repetition did what the run had done"
    # The run itself goes on, and one that nothing was taken from comes out the same.
    resumed = train([*RUN, "scheduler=constant"], older).ok()
    assert "resumed" in resumed.out() and json.loads((older / "run/summary.json").read_text())["status"] == "finished"
    assert "no such setting" not in resumed.out() and "mixup" in (older / "run/.hydra/config.yaml").read_text()


@pytest.mark.parametrize("what", [*WITHOUT][2:])
def test_an_older_run_is_resumed_and_measured(what, older):
    forget(older / "run", *WITHOUT[what])
    command("evaluate", ["run"], older).ok()
    train([*RUN, "scheduler=constant"], older).ok()


def test_another_value_is_still_another_run(older):
    forget(older / "run", *WITHOUT["all that has a neutral value"])
    answer = train([*RUN, "scheduler=constant", "mixup.alpha=0.2", "sampling=balanced"], older, name="../io").wait()
    assert answer.status == [2] and "mixup.alpha: 0 -> 0.2" in answer.err()
    assert "sampling: shuffle -> balanced" in answer.err()


def test_a_primary_config_of_an_earlier_launcher_composes(tmp_path):
    """A train.yaml that somebody copied and adapted once."""
    text = (REPOSITORY / "conf/train.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(
        text[: text.index("early_stopping:")] + "seed: 3\nhydra:" + text.split("hydra:")[-1]
    )
    settings = compose("--config-dir", str(tmp_path), "--config-name", "mine").settings
    assert settings.seed == 3 and settings.mixup.alpha == 0 and settings.wandb.project is None


def test_arguments_of_classes_that_came_later():
    """Those that a run was made without: the schema's for our own classes, else the class's own default."""
    old, new = (compose("data=image_folder", "data.root=x").plain() for _ in range(2))
    for key in ("random_erasing", "augment", "validation_folders", "test_folders"):
        del old["data"][key]
    for key in ("fused", "foreach", "dampening", "nesterov", "weight_decay"):
        del old["optimizer"][key]
    del old["loss"]["label_smoothing"], old["loss"]["weight"], old["scheduler"]["eta_min"]
    assert differences(old, new) == [] == differences(new, old)
    del old["optimizer"]["momentum"]
    assert differences(old, new) == ["optimizer.momentum: 0 -> 0.9"]
    old["optimizer"] = new["optimizer"]
    del old["model"]["activation"]
    assert differences(old, new) == ["model.activation: absent -> relu"], "no default, and none that is stated"


def test_data_that_was_described_before_an_argument_came(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(8):
                image.new("RGB", (8, 8), (20 * i, 100, 0)).save(tmp_path / part / label / f"{i}.png")
    settings = compose("data=image_folder", f"data.root={tmp_path}", "data.image_size=8").plain()["data"]
    whole = build_data(settings)
    for key in ("random_erasing", "augment", "validation_folders", "test_folders"):
        del settings[key]
    assert build_data(settings).record() == whole.record()


def test_a_run_from_before_classes_moved_is_taken_up(older):
    """Its config has no version, and names that this launcher has moved."""
    words = ["loss=focal", "optimizer=lion", "scheduler=constant", "epochs=2", "wandb.mode=disabled"]
    words = [*(word for word in RUN if not word.startswith(("epochs", "hydra"))), *words, "hydra.run.dir=moved"]
    train(words, older).ok()
    file = older / "moved/.hydra/config.yaml"
    text = file.read_text().replace("losses.focal.FocalLoss", "losses.FocalLoss")
    text = text.replace("optimizers.lion.Lion", "optimizers.Lion")
    file.write_text(text.replace(f"schema_version: {VERSION}\n", ""))
    assert text.count("launcher.losses.FocalLoss") == text.count("launcher.optimizers.Lion") == 1
    for program, more in (("evaluate", ["moved"]), ("rerun", ["moved", "output=again"])):
        command(program, more, older, name=f"../io-{program}").ok()
    assert rows(older / "again") == rows(older / "moved")
    same = ["--config-dir", "moved/.hydra", "--config-name", "config", "hydra.run.dir=other"]
    train(same, older).ok()
    assert rows(older / "other") == rows(older / "moved")
    assert "resumed" in train([*words, "epochs=3"], older).ok().out()
    assert file.read_text().startswith(f"schema_version: {VERSION}\n")


def test_a_run_of_a_later_launcher_is_refused_in_a_sentence(older):
    file = older / "run/.hydra/config.yaml"
    file.write_text(file.read_text().replace(f"schema_version: {VERSION}\n", "schema_version: 7\n"))
    for program, words in (("evaluate", ["run"]), ("rerun", ["run"]), ("train", [*RUN, "scheduler=constant"])):
        answer = command(program, words, older, name=f"../io-{program}").wait()
        assert answer.status == [2] and "schema_version=7" in answer.err() and "Traceback" not in answer.err()


@pytest.mark.soak
def test_a_sweep_of_an_earlier_launcher_goes_on(tmp_path):
    words = [sys.executable, str(REPOSITORY / "launcher/train.py"), "-m", "max_steps=3", "threads=1", "seed=1,2",
             "hydra.sweep.dir=sweep", "hydra.launcher.max_parallel=2", "wandb.mode=disabled"]  # fmt: skip

    def run(*more):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run()
    for trial in (tmp_path / "sweep").glob("*/.hydra"):
        forget(trial.parent, *WITHOUT["what came after the first commit"])
    known = json.loads((tmp_path / "sweep/grid.json").read_text())
    for key in ("mixup", "sampling", "early_stopping", "channels_last", "divergence", "freeze"):
        del known["base"][key]
    (tmp_path / "sweep/grid.json").write_text(json.dumps(known))
    assert "2 finished before" in run()
    shutil.rmtree(next((tmp_path / "sweep").glob("*seed=2*")))
    assert "1 finished before, 1 new" in run()
    done = subprocess.run([sys.executable, "-m", "launcher", "compare", "sweep"], cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "seed" in done.stdout
