"""Every file under conf/ is composed and built; every experiment trains a few steps; one setting at a time."""

import json
import os
import sys
from types import SimpleNamespace

import mds_written
import numpy as np
import pytest
from omegaconf import OmegaConf
from processes import REPOSITORY, train

import launcher
from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.config.differences import differences
from launcher.config.schema import SCHEMA
from launcher.config.tree import directory_override
from launcher.core.errors import ConfigError
from launcher.run.command_line import config_options, launch_words

CONF = REPOSITORY / "conf"
GROUPS = ("optimizer", "loss", "scheduler", "batch", "data", "model", "adapter", "strategy", "experiment")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
FASHION = ("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz", "fashion_mnist")
TABLE = "a,b,y\n" + "".join(f"{i % 7},{i * 2 % 5},{i % 2}\n" for i in range(40))


def compose(*overrides, directory=None):
    arguments = parse_arguments([*(["--config-dir", str(directory)] if directory else []), *overrides])
    with composition.opened(arguments, "train") as (hydra, name):
        return composition.compose(hydra, name, arguments.overrides)


def test_every_group_has_its_options():
    found = {group: {path.stem for path in (CONF / group).glob("*.yaml")} for group in GROUPS}
    assert {"sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "muon"} <= found["optimizer"]
    assert {"step", "cosine", "linear", "constant", "one_cycle", "plateau"} <= found["scheduler"]
    assert {"cross_entropy", "multi_margin", "focal", "binary_cross_entropy", "mse", "l1", "huber"} <= found["loss"]
    assert {
        "digits",
        "fashion_mnist",
        "diabetes",
        "iris",
        "wine",
        "csv",
        "table",
        "image_folder",
        "cifar10",
        "imagenet",
        "huggingface",
        "text",
        "brackets",
        "shapes",
    } <= found["data"]
    assert {"mlp", "cnn", "resnet", "linear", "timm", "torchvision", "transformer", "encoder", "unet"} <= found["model"]
    assert {"default", "small", "large"} <= found["batch"]
    assert {"fashion_mnist", "imbalanced", "diabetes", "text"} <= found["experiment"]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_what_it_is(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ") and len(first) > 20


def test_settings_of_this_machine(tmp_path):
    """local/default.yaml counts wherever it is there, over an experiment's and below the command line's."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local/default.yaml").write_text("# @package _global_\nwandb: {entity: lab}\nlog_every: 7\n")
    (tmp_path / "local/other.yaml").write_text("# @package _global_\nwandb: {entity: home}\n")
    settings = compose("experiment=diabetes", directory=tmp_path).settings
    assert (settings.wandb.entity, settings.log_every, settings.epochs) == ("lab", 7, 30)
    assert compose("log_every=3", directory=tmp_path).settings.log_every == 3
    assert compose("local=other", directory=tmp_path).settings.wandb.entity == "home"
    assert compose("~local", directory=tmp_path).settings.wandb.entity is None
    with pytest.raises(ConfigError, match=r"^local=nix: no such option\. There are: default, other\.$"):
        compose("local=nix", directory=tmp_path)
    (tmp_path / "local/default.yaml").write_text("wandb: {entity: lab}\n")
    with pytest.raises(ConfigError, match="begins with the line `# @package _global_`"):
        compose(directory=tmp_path)


def _run(group, option, place):
    """A command line that trains a few steps with an option, or a reason why it cannot be tried here."""
    words = [f"{group}={option}", "max_steps=3", "log_every=1", "threads=1", "hydra.run.dir=run"]
    if option in ("mse", "l1", "huber") or (group, option) == ("data", "diabetes"):
        words += ["data=diabetes"] if group == "loss" else ["loss=mse"]
    if (group, option) in (("data", "csv"), ("data", "table")):
        (place / "table.csv").write_text(TABLE)
        words += ["data.path=table.csv", "data.target=y"]
    if (group, option) == ("data", "huggingface"):
        pytest.importorskip("datasets")
        (place / "table.csv").write_text(TABLE)
        words += ["data.path=table.csv", "data.input=a", "data.target=y", "num_workers=0"]
    pairs = {"brackets": "encoder", "shapes": "unet"}  # data, and the model that is made for it
    for data, model in pairs.items():
        if option in (data, model):
            words += [f"data={data}", f"model={model}", "data.samples=100"]
    if option in ("text", "transformer"):
        words += {"data": ["model=transformer"], "model": ["data=text"], "experiment": []}[group]
        words += [f"data.path={REPOSITORY / 'README.md'}", "data.block=32", "model.width=32", "model.layers=1"]
    if (group, option) == ("data", "shards"):
        (place / "tokens.bin").write_bytes(bytes(500))
        words += ["data.path=tokens.bin", "data.dtype=uint8", "data.vocabulary=9", "data.block=32"]
        words += ["model=transformer", "model.width=32", "model.layers=1", "sampling=blocked"]
    if (group, option) == ("data", "mds"):
        rows = [{"t": np.arange(i, i + 9, dtype=np.uint16).tobytes()} for i in range(40)]
        mds_written.write(place / "mds", {"t": "bytes"}, rows, 7)
        words += ["data.path=mds", "data.input=t", "data.dtype=uint16", "data.vocabulary=50", "batch.global_size=8"]
        words += ["model=transformer", "model.width=32", "model.layers=1", "sampling=blocked"]
    if option == "lora":
        pytest.importorskip("peft")
    if option == "transformers":
        pytest.importorskip("transformers")
        words += ["data=text", f"data.path={REPOSITORY / 'README.md'}", "data.block=16", "model.auto=causal"]
        words += ["model.type=gpt2", "+model.config.n_embd=16", "+model.config.n_layer=1", "+model.config.n_head=2"]
    if option in ("cifar10", "cifar100"):
        pytest.skip("CIFAR is not installed; tests/data/test_cifar.py reads files of its form")
    if option in ("timm", "torchvision"):
        pytest.importorskip(option)
        words += ["model.name=test_resnet"] if option == "timm" else []
    if option in ("image_folder", "imagenet"):
        image = pytest.importorskip("PIL.Image")
        for part in ("train", "test"):
            for label in ("cat", "dog"):
                (place / "images" / part / label).mkdir(parents=True)
                for i in range(12):
                    color = (20 * i, 100, 200 if label == "cat" else 0)
                    image.new("RGB", (40, 30), color).save(place / "images" / part / label / f"{i}.png")
        words += ["data.root=images", "data.image_size=16", "model=cnn", "num_workers=0"]
    if option.startswith("fashion_mnist"):
        import os

        if not os.path.exists(FASHION[0]):
            pytest.skip("Debian's package dataset-fashion-mnist is not installed")
        words += ["data.validation=0.01", "eval_every=null"]
        words += ["model.depth=8", "model.width=4", "test_time_flip=false"] if option.endswith("resnet") else []
    return words


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_trains(group, option, tmp_path):
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = train(_run(group, option, tmp_path), tmp_path, environment=environment).ok()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 3, run.out()


def test_defaults_of_the_readme():
    settings = compose().settings
    assert settings.batch.global_size == 64 and settings.optimizer._target_ == "torch.optim.SGD"
    assert set(SCHEMA) >= {"seed", "epochs", "max_steps", "batch.global_size", "optimizer.lr", "wandb.mode"}


def test_a_persons_own_options_and_classes(tmp_path):
    """--config-dir adds options; a class of one's own takes the place of an option's, whose keys it need not take."""
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/mine.yaml").write_text("# Mine\n_target_: torch.optim.NAdam\nlr: 0.003\n")
    settings = compose("optimizer=mine", directory=tmp_path / "conf").settings
    assert settings.optimizer._target_ == "torch.optim.NAdam"
    (tmp_path / "ownmodel.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, in_features, num_classes, scale=1.0):\n"
        "        super().__init__(in_features, num_classes)\n"
        "    def forward(self, x):\n        return super().forward(x.flatten(1))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        settings = compose("model._target_=ownmodel.Net", "+model.scale=2.0").settings
        assert dict(settings.model) == {"_target_": "ownmodel.Net", "scale": 2.0}
        kept = compose("model._target_=ownmodel.Net", "model.hidden=[3]").settings
        assert list(kept.model.hidden) == [3], "what the person set is for the class to refuse, by name"
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("ownmodel", None)
    words = ["--config-dir", str(tmp_path / "conf"), "optimizer=mine", "model._target_=ownmodel.Net", "epochs=2"]
    train([*words, "hydra.run.dir=run"], tmp_path).ok()
    written = OmegaConf.load(tmp_path / "run/.hydra/config.yaml")
    assert written.model._target_ == "ownmodel.Net" and "hidden" not in written.model


def test_what_may_differ_on_a_resume():
    old = compose().plain()
    free = compose("batch.max_per_device=8", "log_every=3", "wandb.mode=offline", "checkpoint.keep=9", "threads=3")
    assert differences(old, free.plain()) == []
    other = compose("optimizer.lr=0.5", "seed=4", "loss=focal").plain()
    lines = differences(old, other)
    assert "optimizer.lr: 0.1 -> 0.5" in lines and "seed: 0 -> 4" in lines
    assert any(line.startswith("loss._target_") for line in lines)


def test_directories_with_any_name_reach_hydra_unharmed():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for name in ("run", "a b", "lr=0.1,momentum=0.9", "it's", "[1,2]", "${x}", "a\\b", "ü"):
        (override,) = OverridesParser.create().parse_overrides([directory_override(name)])
        assert override.value() == name


def test_the_command_that_goes_on_names_the_config_and_how_it_was_started(monkeypatch):
    from launcher.run import command_line

    words = ["--config-dir", "conf dir", "lr=1", "--config-name=mine", "-m", "-cp", "base"]
    assert config_options(words) == ["--config-dir", "conf dir", "--config-name=mine", "-cp", "base"]
    parent = ["/usr/bin/python", "/usr/bin/torchrun", "--nproc_per_node", "2", "-m", "launcher.train", *words]
    monkeypatch.setattr(command_line, "parent_command", lambda: parent)
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "launcher/train.py"), *words])
    assert launch_words() == ["torchrun", "--nproc_per_node", "2", "-m", "launcher.train"]
    parent[4:6] = ["launcher/train.py"]
    script = os.path.relpath(REPOSITORY / "launcher/train.py")
    assert launch_words() == ["torchrun", "--nproc_per_node", "2", script]
    parent[4:] = ["-m", "launcher", "rerun", "run"]
    monkeypatch.setattr(launcher, "command", "train")  # which a repeated run goes on as
    assert launch_words() == ["torchrun", "--nproc_per_node", "2", "-m", "launcher", "train"]


def test_a_launch_that_begins_again_finds_its_run_and_another_does_not(tmp_path, monkeypatch):
    """A requeued job and a restarted group go on; the next command of the same allocation is a run of its own."""
    from launcher.run.run_directory import open_run_directory

    def begin(name, **environment):
        for variable in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        composed = compose("epochs=1")
        OmegaConf.set_readonly(composed.hydra, False)
        composed.hydra.run.dir = str(tmp_path / name)
        opened = open_run_directory(composed, SimpleNamespace(total_steps=10))
        opened.close()
        return opened.path.name, opened.found.resumed

    assert begin("first", SLURM_JOB_ID="7") == ("first", False)
    assert begin("second", SLURM_JOB_ID="7") == ("second", False)
    (tmp_path / "first/summary.json").write_text('{"status": "stopped"}')  # and killed before it said how to go on
    (tmp_path / "second/summary.json").write_text('{"status": "finished"}')
    assert begin("third", SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1") == ("first", True)
    (tmp_path / "first/.lock").write_text("{}")
    assert begin("third", SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1") == ("second", True)  # failed after its end
    assert begin("fourth", SLURM_JOB_ID="8", SLURM_RESTART_COUNT="1") == ("fourth", False)
    assert begin("fifth", SLURM_JOB_ID="9", TORCHELASTIC_RUN_ID="x") == ("fifth", False)
    assert begin("sixth", SLURM_JOB_ID="9", TORCHELASTIC_RUN_ID="x") == ("fifth", True)
    assert begin("seventh", SLURM_JOB_ID="9", TORCHELASTIC_RUN_ID="y") == ("seventh", False)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("eval/loss", "min"), ("eval/accuracy", "max"), ("eval/macro_f1", "max"), ("eval/r2", "max"), ("eval/rmse", "min"),
     ("eval/BinaryAUROC", "max"), ("eval/MeanSquaredError", "min"), ("eval/mine", None)],
)  # fmt: skip
def test_which_way_a_figure_gets_better(metric, mode):
    from launcher.config.direction import direction

    assert direction(metric) == mode
