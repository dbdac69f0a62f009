"""A run directory from somebody else: whatever its `_target_`s name, nothing of it runs that is no part of a run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from processes import command, train

from launcher.config import trust
from launcher.core.errors import ConfigError
from launcher.run import saved

TABLE = "a,b,y\n" + "".join(f"{i % 7},{i * 2 % 5},{i % 2}\n" for i in range(60))
RUN = ["data=csv", "data.path=table.csv", "data.target=y", "max_steps=4", "eval_every=2", "threads=1",
       "hydra.run.dir=run"]  # fmt: skip
CANARY = "canary"


class Touch:
    """Pickled, it makes the canary when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


TOUCH = f"touch {CANARY}"
# What each would do, were it called: make the canary, or take the victim away.
LIVE = {
    "os.system": {"command": TOUCH},
    "posix.system": {"command": TOUCH},
    "subprocess.run": {"args": ["touch", CANARY]},
    "subprocess.Popen": {"args": ["touch", CANARY]},
    "builtins.eval": {"_args_": [f"open('{CANARY}', 'w')"]},
    "builtins.exec": {"_args_": [f"open('{CANARY}', 'w')"]},
    "builtins.open": {"file": CANARY, "mode": "w"},
    "importlib.import_module": {"name": "evil"},
    "runpy.run_path": {"path_name": "evil.py"},
    "pickle.loads": {"_args_": [pickle.dumps(Touch())]},
    "pandas.read_pickle": {"filepath_or_buffer": "evil.pickle"},
    "numpy.load": {"file": "evil.npy", "allow_pickle": True},
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.serialization.load": {"f": "evil.pt", "weights_only": False},
    "torch.nn.modules.linear.torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "evil", "source": "local"},
    "torch.from_file": {"filename": CANARY, "shared": True, "size": 1},
    "shutil.rmtree": {"path": "victim"},
    "os.rmdir": {"path": "victim"},
    "pathlib.Path.rmdir": {"_args_": [{"_target_": "pathlib.Path", "_args_": ["victim"]}]},
    "pathlib.Path.touch": {"_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}]},
    "hydra.utils.instantiate": {"config": {"_target_": "os.mkdir", "path": CANARY}},
    "hydra.utils.call": {"config": {"_target_": "os.mkdir", "path": CANARY}},
    "launcher.distributed.slurm_commands.ask": {"_args_": ["touch", CANARY]},
    "launcher.data.text.os.system": {"command": TOUCH},
    "launcher.config.components.build": {"group": "x", "settings": {"_target_": "os.mkdir", "path": CANARY}},
}
OTHERS = {  # that need more to do harm than a test should give them
    "ctypes.CDLL": {"name": "libc.so.6"},
    "functools.partial": {"_args_": [{"_target_": "os.system", "_partial_": True}, TOUCH]},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": ""},
    "joblib.load": {"filename": "evil.pickle"},
    "torch.nn.Module.eval": {},
    "launcher.config.components.locate": {"target": "os.system", "group": "x"},
}
PLACES = ("model", "loss", "optimizer", "scheduler", "data", "nested", "listed", "reader")


def arm(directory):
    """What the targets above would use."""
    (directory / "evil.py").write_text(f"import os\nos.system('{TOUCH}')\n")
    (directory / "hubconf.py").write_text(f"import os\ndef evil():\n    os.system('{TOUCH}')\n")
    (directory / "evil.pickle").write_bytes(pickle.dumps(Touch()))
    torch.save(Touch(), directory / "evil.pt")
    numpy.save(directory / "evil.npy", numpy.array([Touch()], dtype=object), allow_pickle=True)
    (directory / "victim").mkdir()


def unharmed(directory):
    return (directory / "victim").is_dir() and not (directory / CANARY).exists()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("theirs")
    (directory / "table.csv").write_text(TABLE)
    train(RUN, directory).ok()
    arm(directory)
    return directory


@pytest.fixture
def theirs(original, tmp_path):
    shutil.copytree(original, tmp_path / "there", symlinks=True)
    return tmp_path / "there"


def plant(directory, place, target, arguments):
    """Put a target into a run directory."""
    what = {"_target_": target, **arguments}
    file = directory / "run/.hydra/config.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(file))
    if place == "reader":
        record = json.loads((directory / "run/data.json").read_text())
        record["reader"] = json.loads(json.dumps(what, default=str))
        (directory / "run/data.json").write_text(json.dumps(record))
        return
    if place == "nested":
        settings["model"]["activation"] = what
    elif place == "listed":
        settings["model"]["_args_"] = [[what]]
    else:
        settings[place] = what
    OmegaConf.save(OmegaConf.create(settings), file)


def test_the_targets_would_do_their_harm(tmp_path):
    """Or it would be no proof that they do none: each is called, as `instantiate` would call it."""
    code = f"""
import os, shutil, sys
sys.path.insert(0, os.getcwd())
from hydra.utils import get_object
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trust import LIVE, CANARY
import pathlib
for target, arguments in LIVE.items():
    given = dict(arguments)
    args = [pathlib.Path(one["_args_"][0]) if isinstance(one, dict) else one for one in given.pop("_args_", [])]
    try:
        done = get_object(target)(*args, **given)
        getattr(done, "wait", int)()
    except Exception as error:
        print(target, repr(error), file=sys.stderr)
    harm = os.path.exists(CANARY) or not os.path.isdir("victim")
    print(target, harm)
    shutil.rmtree(CANARY, ignore_errors=True)
    if os.path.exists(CANARY):
        os.remove(CANARY)
    os.makedirs("victim", exist_ok=True)
"""
    arm(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if not line.endswith("True")] == [], done.stderr


@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_a_run_directory_is_called_that_no_run_is_made_of(place, original, tmp_path, monkeypatch):
    """Every target in every place, read as each command reads it."""
    for number, (target, arguments) in enumerate((LIVE | OTHERS).items()):
        there = tmp_path / str(number)
        shutil.copytree(original, there, symlinks=True)
        monkeypatch.chdir(there)
        plant(there, place, target, arguments)
        with pytest.raises(ConfigError) as caught:
            path, run = saved.open_run("run")
            saved.read_record(path, run)
        text = str(caught.value)
        assert text.startswith("run_dir=run: its ") and "\n" not in text
        named = "os.system" if target == "functools.partial" else target
        assert f"_target_={named} is nothing that a run is made of" in text
        assert unharmed(there), target
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(there)


WAYS = {
    "evaluate": ["run"],
    "predict": ["run_dir=run", "input=table.csv"],
    "export": ["run"],
    "rerun": ["run"],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("program", WAYS)
def test_each_command_says_so_in_a_sentence(program, place, theirs):
    plant(theirs, place, "os.system", LIVE["os.system"])
    before = sorted(theirs.rglob("*"))
    answer = command(program, WAYS[program], theirs, name="../io").wait()
    assert answer.status == [2] and "os.system is nothing that a run is made of" in answer.err(), answer.err()
    assert answer.err().count("\n") == 1 and unharmed(theirs) and sorted(theirs.rglob("*")) == before


@pytest.mark.parametrize("target", ["torch.load", "launcher.data.text.os.system", "torch.hub.load"])
def test_what_hydra_lets_pass_is_refused_as_well(target, theirs):
    for program, words in WAYS.items():
        plant(theirs, "model", target, LIVE[target])
        answer = command(program, words, theirs, name="../io").wait()
        assert answer.status == [2] and f"{target} is nothing that a run is made of" in answer.err(), answer.err()
        assert unharmed(theirs)


def test_a_tracker_that_a_run_directory_names_is_refused_as_well(theirs):
    settings = OmegaConf.load(theirs / "run/.hydra/config.yaml")
    settings.trackers = ["os.system"]
    OmegaConf.save(settings, theirs / "run/.hydra/config.yaml")
    for program, words in WAYS.items():
        answer = command(program, words, theirs, name="../io").wait()
        assert answer.status == [2] and "trackers=os.system is nothing that a run is made of" in answer.err()


def test_a_run_is_not_resumed_with_what_its_directory_names(theirs):
    """The command line says what is built; a run directory's config is only compared with it."""
    plant(theirs, "model", "os.system", LIVE["os.system"])
    answer = train(RUN, theirs, name="../io").wait()
    assert answer.status == [2] and "model._target_" in answer.err() and unharmed(theirs)
    words = ["--config-dir", "run/.hydra", "--config-name", "config", "hydra.run.dir=other"]
    answer = train(words, theirs, name="../io").wait()
    assert answer.status == [2] and "os.system is nothing" in answer.err() and unharmed(theirs)
    plant(theirs, "model", "torch.load", LIVE["torch.load"])
    answer = train(words, theirs, name="../io").wait()
    assert answer.status == [2] and "torch.load is nothing" in answer.err() and unharmed(theirs)


def test_on_the_command_line_hydras_policy_is_one_sentence(theirs):
    nested = ["model._target_=torch.nn.Sequential", "+model._args_=[{_target_: os.system, command: '" + TOUCH + "'}]"]
    for words in (["model._target_=os.system", f"+model.command='{TOUCH}'"], nested):
        answer = train([*words, "hydra.run.dir=other"], theirs, name="../io").wait()
        assert answer.status == [2] and answer.err().count("\n") == 1 and unharmed(theirs), answer.err()
        assert "Hydra does not call os.system" in answer.err()


def test_parts_of_runs_are_let_through(tmp_path):
    pytest.importorskip("timm")
    for target in (
        "launcher.models.mlp.MLP", "launcher.data.sklearn.load_digits", "launcher.losses.focal.FocalLoss",
        "torch.optim.SGD", "torch.nn.GELU", "torch.nn.functional.relu", "torch.tanh", "torch.optim.lr_scheduler.StepLR",
        "torchvision.models.resnet18", "timm.create_model", "timm.models.resnet18", "timm.optim.Lamb",
        "collections.OrderedDict", "functools.partial", "pathlib.Path", "builtins.dict", "pytest.importorskip",
    ):  # fmt: skip
        trust.check_targets({"model": {"_target_": target}}, tmp_path)


def test_code_beside_weights_is_not_run_for_a_directory(tmp_path, monkeypatch):
    settings = {"model": {"_target_": "launcher.models.transformers.create", "name": "x/y", "trust_remote_code": True}}
    with pytest.raises(ConfigError, match=r"trust_remote_code=True runs the code in x/y.*LAUNCHER_TRUST_REMOTE_CODE=1"):
        trust.check_names(settings, tmp_path)
    monkeypatch.setenv("LAUNCHER_TRUST_REMOTE_CODE", "1")
    trust.check_names(settings, tmp_path)


def test_of_transformers_models_and_their_configurations_are_let_through(tmp_path):
    pytest.importorskip("transformers")
    for target in ("transformers.BertConfig", "transformers.BertModel"):
        trust.check_targets({"model": {"_target_": target}}, tmp_path)
    for target in ("transformers.AutoModel.from_pretrained", "huggingface_hub.snapshot_download"):
        with pytest.raises(ConfigError, match="nothing that a run is made of"):
            trust.check_targets({"model": {"_target_": target}}, tmp_path)


def test_a_strangers_own_code_is_named(theirs, caplog, monkeypatch):
    """A package that neither we nor the person brought is named where the directory is another user's."""
    plant(theirs, "model", "pluggy.PluginManager", {"project_name": "x"})
    monkeypatch.chdir(theirs)
    saved.open_run("run")
    assert not caplog.records, "one's own directory"
    if os.geteuid() == 0:
        os.chown(theirs / "run/.hydra/config.yaml", 12345, -1)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    saved.open_run("run")
    (record,) = caplog.records
    assert "another user" in record.getMessage() and "model._target_=pluggy.PluginManager" in record.getMessage()
    caplog.clear()
    plant(theirs, "model", "evil.Net", {})
    saved.open_run("run")
    assert not caplog.records, "the working directory is the person's"
