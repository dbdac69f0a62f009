"""Hooks of a person's own: what they log, that they change nothing, and that they go on and back with the run."""

import importlib
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_loop import OWN, newest, place
from PIL import Image
from processes import rows, summary, train
from safetensors.torch import load_file
from trainers import make_trainer

from launcher.config.trust import check_targets
from launcher.core.errors import ConfigError
from launcher.training.hooks import OWN_NAMES, HookFailed, Hooks, as_logged, build_hooks
from launcher.training.progress import Progress

CODE = (
    OWN.replace("import torch\n", "import torch\nimport numpy, os, random, signal\n")
    + """
from launcher.models.mlp import MLP

class Probe:
    def __init__(self, classes=0, num_classes=0, every=1, kill=0):
        self.sum, self.every, self.kill, self.seen = 0.0, every, kill, torch.zeros(2, dtype=torch.int64)
        assert num_classes == 3  # which the data tell

    def after_step(self, run):
        torch.rand(5), random.random(), numpy.random.rand(), run.model.eval()
        self.seen[0] += 1
        if run.step == self.kill and run.is_main and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if run.step % self.every == 0:
            mine = sum(float(p.square().sum()) for p in run.model.state_dict().values()) + (not run.is_main)
            self.sum += mine
            run.log("probe/squares", mine)
            run.log("probe/sum", numpy.float64(self.sum))
            run.log("probe/drawn", torch.rand(()) + random.random() + numpy.random.rand())

    def after_evaluation(self, run):
        self.seen[1] += 1
        run.log("probe/counts", self.seen.float() / 8)
        run.log("probe/loss", run.metrics["eval/loss"])
        run.log("probe/picture", torch.full((3, 2, 5), run.step % 256, dtype=torch.uint8))

    def at_end(self, run):
        run.log("probe/last", run.metrics["eval/loss"] + run.epoch)

    def state_dict(self):
        return {"sum": self.sum, "seen": self.seen}

    def load_state_dict(self, state):
        self.sum, self.seen = state["sum"], state["seen"]

class Counted:
    seen = 0

    def after_step(self, run):
        self.seen += 1
        run.log("counted/seen", self.seen)
        run.log("counted/rate", run.lr)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

class Wrong:
    def __init__(self, kind):
        self.kind = kind
        self.other = 1

    def after_step(self, run):
        if self.kind == "raises":
            run.step / 0
        name = {"taken": "train/loss", "lr": "lr", "form": "../up"}.get(self.kind, "probe/x")
        run.log(name, {"matrix": torch.ones(2, 2), "text": "one"}.get(self.kind, 1.0))
        if self.kind == "twice":
            run.log(name, 2.0)

    def state_dict(self):
        return {"array": numpy.ones(2)} if self.kind == "state" else {}

    def load_state_dict(self, state):
        pass

class Nothing:
    pass

class Half:
    def after_step(self, run):
        pass

    def state_dict(self):
        return {}
"""
)
WORDS = [
    "data._target_=own.load", "model.hidden=[8]", "model.dropout=0.2", "batch.global_size=14", "epochs=4",
    "log_every=4", "eval_every=5", "checkpoint.every=1", "checkpoint.keep=30", "threads=1", "hydra.run.dir=run",
    "optimizer.lr=0.01", "scheduler=constant", "trackers=[]",
]  # fmt: skip
STEPS = 20
PROBE = "hooks=[{_target_: own.Probe}]"


def test_numbers_stand_in_the_rows_of_their_steps_and_change_nothing_else(tmp_path):
    """On 2 ranks: the squares of the weights of each checkpoint, and all else to the bit as without hooks."""
    plain, hooked = place(tmp_path / "plain", CODE), place(tmp_path / "hooked", CODE)
    train([*WORDS, "epochs=2"], plain, 2).ok()
    train([*WORDS, "epochs=2", PROBE], hooked, 2).ok()
    record = rows(hooked / "run")
    assert [row["step"] for row in record] == list(range(1, 11))
    total = 0.0
    for row in record:
        weights = load_file(hooked / f"run/checkpoints/step_{row['step']:08d}/model.safetensors")
        squares = sum(float(tensor.square().sum()) for tensor in weights.values())
        assert row["probe/squares"] == pytest.approx(squares, rel=1e-5), "rank 0's, not 1 more"
        total += row["probe/squares"]
        assert row["probe/sum"] == pytest.approx(total) and row["epoch"] == row["step"] / 5
        assert ("probe/loss" in row) == (row["step"] % 5 == 0) and row.get("probe/loss") == row.get("eval/loss")
    assert len({row["probe/drawn"] for row in record}) == 10
    assert record[-1]["probe/last"] == record[-1]["eval/loss"] + 2 and summary(hooked / "run")["final"]["probe/last"]
    others = [{n: value for n, value in row.items() if not n.startswith("probe/")} for row in record]
    assert [row for row in others if len(row) > 2] == rows(plain / "run")
    first, second = (load_file(newest(d) / "model.safetensors") for d in (plain, hooked))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (torch.load(newest(d) / "state.pt", weights_only=True)["random"] for d in (plain, hooked))
    assert first == second, "what hooks have drawn is put back"
    for step in (5, 10):
        picture = np.asarray(Image.open(hooked / f"run/images/probe/picture/step_{step:08d}.png"))
        assert picture.shape == (2, 5, 3) and (picture == step).all()
    media = [json.loads(line) for line in (hooked / "run/media.jsonl").read_text().splitlines()]
    assert [row["step"] for row in media] == [5, 10]
    low, high, *counts = media[1]["probe/counts"]
    assert (low, high, sum(counts)) == (2 / 8, 10 / 8, 2)
    assert not set(summary(plain / "run")) - OWN_NAMES, "what summary.json is called by, hooks may not use"


@pytest.mark.parametrize("kill", [pytest.param(7, marks=pytest.mark.soak), 15])
def test_killed_it_ends_with_the_record_of_one_that_was_not(kill, tmp_path):
    """Between two saves, whose hook has counted on; and prolonged afterwards, whose end is taken back."""
    words = [*(word for word in WORDS if not word.startswith("checkpoint.every")), "checkpoint.every=4"]
    calm, killed = place(tmp_path / "calm", CODE), place(tmp_path / "killed", CODE)
    train([*words, PROBE], calm).ok()
    short = [*words, f"hooks=[{{_target_: own.Probe, kill: {kill}}}]", "max_steps=17"]
    assert train(short, killed).wait().status == [-signal.SIGKILL]
    train(short, killed, name="io1").ok()
    assert rows(killed / "run")[-1]["step"] == 17 and "probe/last" in rows(killed / "run")[-1]
    train([*words, PROBE], killed, name="io2").ok()
    one, other = (torch.load(newest(d) / "state.pt", weights_only=True)["hooks"] for d in (calm, killed))
    assert str(one) == str(other) and "own.Probe" in str(one)
    for file in ("metrics.jsonl", "media.jsonl", *(f"images/probe/picture/step_{n:08d}.png" for n in (5, 10, 15, 20))):
        assert (calm / "run" / file).read_bytes() == (killed / "run" / file).read_bytes(), file
    assert len(list((killed / "run/images/probe/picture").iterdir())) == 4, "that of step 17 is gone"


def test_a_rollback_takes_hooks_back(tmp_path):
    """What was counted beyond a checkpoint is forgotten; and on resume there may be others."""
    place(tmp_path, CODE + POISONED)
    words = [*WORDS, "checkpoint.every=3", "log_every=7", "divergence.action=rollback", "divergence.max_rollbacks=9",
             "data._target_=own.poisoned"]  # fmt: skip
    train([*words, "max_steps=12", "hooks=[{_target_: own.Counted}]"], tmp_path).ok()
    assert json.loads((tmp_path / "run/rollbacks.json").read_text())
    assert [row["counted/seen"] for row in rows(tmp_path / "run")] == list(range(1, 13))
    both = "hooks=[{_target_: own.Probe}, {_target_: own.Counted}]"
    run = train([*words, both], tmp_path, name="io1").ok()
    assert "own.Probe is new in this run" in run.out()
    found = {row["step"]: row for row in rows(tmp_path / "run")}
    assert [found[step]["counted/seen"] for step in (12, 13, 20)] == [12, 13, 20]
    assert [("probe/sum" in found[step]) for step in (11, 13)] == [False, True]
    assert found[13]["counted/rate"] == 0.01


def test_what_a_hook_raises_ends_the_run_with_its_name(tmp_path):
    place(tmp_path, CODE)
    run = train([*WORDS, "hooks=[{_target_: own.Wrong, kind: raises}]"], tmp_path).wait()
    message = "hooks: own.Wrong.after_step raised at step 1: ZeroDivisionError: division by zero"
    assert run.status == [1] and "run.step / 0" in run.err() and run.err().rstrip().endswith(message), run.err()
    run = train([*WORDS, "hooks=[{_target_: own.Wrong, kind: taken}]", "hydra.run.dir=b"], tmp_path, name="io1").wait()
    message = "error: hooks: own.Wrong.after_step logs 'train/loss', a name that the launcher writes itself."
    assert run.status == [2] and run.err().startswith(message) and "Traceback" not in run.err(), run.err()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module `own`, imported here."""
    monkeypatch.syspath_prepend(str(place(tmp_path, CODE)))
    yield importlib.import_module("own")
    del sys.modules["own"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lr", "logs 'lr', a name that the launcher writes itself. Give it a prefix"),
        ("form", "logs '../up': a name is up to 128 letters"),
        ("twice", "logs 'probe/x' a second time at step 3"),
        ("matrix", "logs 'probe/x': its value is [2, 2] float32; give a number, an image"),
        ("text", "its value is a str; give a number"),
        ("state", "hooks: own.Wrong.state_dict holds a numpy.ndarray, which a checkpoint does not take"),
    ],
)
def test_what_cannot_be_logged_or_saved_is_one_sentence(kind, message, own, tmp_path):
    model = torch.nn.Linear(2, 2)
    trainer = make_trainer(model, torch.nn.MSELoss(reduction="none"), torch.optim.SGD(model.parameters(), 0.1))
    hooks = Hooks(build_hooks([{"_target_": "own.Wrong", "kind": kind}], {}), trainer, None, 5, tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        hooks.after_step(Progress(step=3))
        hooks.state()


def test_a_hook_that_leaves_the_program_is_a_failure_with_its_name(own, tmp_path):
    class Leaves:
        def after_step(self, run):
            sys.exit(3)

    model = torch.nn.Linear(2, 2)
    trainer = make_trainer(model, torch.nn.MSELoss(reduction="none"), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(HookFailed, match=r"Leaves.after_step raised at step 3: SystemExit: 3"):
        Hooks([Leaves()], trainer, None, 5, tmp_path).after_step(Progress(step=3))


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"_target_": "own.Nothing"}, "hooks: own.Nothing gives a Nothing without any of the methods after_step"),
        ({"_target_": "own.Half"}, "hooks: own.Half needs both state_dict and load_state_dict"),
        ({"_target_": "own.Missing"}, "hooks._target_: cannot import 'own.Missing'"),
        ({"_target_": "own.Probe", "often": 3}, "hooks.often: own.Probe has no argument 'often'"),
        ({"_target_": "os.system", "command": "ls"}, "hooks"),
    ],
)
def test_what_is_no_hook_is_refused(hook, message, own):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_hooks([hook], {"num_classes": 3})
    with pytest.raises(ConfigError, match="nothing that a run is made of"):
        check_targets({"hooks": [{"_target_": "os.system"}]}, Path("run"))


def test_a_missing_argument_is_asked_for_where_the_hook_is_named(own):
    with pytest.raises(ConfigError, match=r"own\.Wrong needs kind, .*\. Write `kind: \.\.\.` beside its _target_\."):
        build_hooks([{"_target_": "own.Wrong"}], {"num_classes": 3})


def test_images_of_any_kind_are_what_a_picture_holds():
    numbers = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, torch.nan]).view(1, 2, 3)
    assert as_logged(numbers).tolist() == [[0, 0, 128], [255, 255, 0]]
    coloured = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    assert np.array_equal(as_logged(coloured).numpy(), coloured.transpose(1, 2, 0))
    picture = Image.fromarray(coloured.transpose(1, 2, 0).copy())
    assert np.array_equal(as_logged(picture).numpy(), np.asarray(picture))
    assert as_logged(picture.convert("L")).shape == (2, 4) and as_logged(picture.convert("RGBA")).shape == (2, 4, 3)
    assert as_logged(True) == 1 and as_logged(torch.tensor([2.5])) == 2.5 and as_logged(np.float32(0.5)) == 0.5
    assert as_logged(torch.tensor([torch.nan, torch.inf])) == []
    for wrong in (torch.ones(2, 3, 4), torch.ones(3, 2, 2, dtype=torch.int64), np.array(["a"]), None, 1j):
        with pytest.raises(TypeError, match="give a number, an image"):
            as_logged(wrong)


POISONED = """
def spoil(raw, uniforms):
    return torch.where(raw[:, :1] == 0.5, torch.nan, raw)

def poisoned():
    data = load()
    data.train.inputs[7], data.train.augment = 0.5, spoil
    return data
"""
COUNTING = """
import collections, json, sys
from launcher.models.mlp import MLP

class Net(MLP):
    calls, found = 0, collections.Counter()

    def forward(self, x):
        if self.training and x.dim() == 2 and len(x) == 14:
            Net.calls += 1
            if Net.calls == 20:
                sys.setprofile(self.count)
            if Net.calls == 30:
                sys.setprofile(None)
                json.dump(self.found, open("calls.json", "w"))
        return super().forward(x)

    def count(self, frame, event, argument):
        if event == "call":
            code = frame.f_code
            self.found[code.co_filename.rpartition("launcher/")[2] + " " + code.co_name] += 1
"""


def test_a_run_without_hooks_does_not_pay(tmp_path):
    """Python calls into the loop itself in 10 steps between two log lines: as many as before there were hooks."""
    words = ["model._target_=own.Net", "log_every=60", "eval_every=60", "checkpoint.every=60", "epochs=12"]
    train([*WORDS, *words, "model.dropout=0.0"], place(tmp_path, CODE + COUNTING)).ok()
    found = json.loads((tmp_path / "calls.json").read_text())
    steps = found["loop.py _evaluate_and_log"]
    of_loop = {name.partition(" ")[2]: count / steps for name, count in found.items() if name.startswith("loop.py ")}
    assert steps > 9 and of_loop == {"_evaluate_and_log": 1, "_due": 5, "over": 7}, "as before there were hooks"
    assert not any(name.startswith("training/hooks.py") for name in found)


@pytest.mark.soak
def test_trackers_show_images_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb_server import clean_environment, history, inspect, segments

    words = [word for word in WORDS if not word.startswith("trackers")]
    home = clean_environment(tmp_path, "http://127.0.0.1:9", None)
    words += [PROBE, "trackers=[wandb,tensorboard]", "wandb.mode=offline"]
    train(words, place(tmp_path, CODE), environment=home).ok()
    board = EventAccumulator(str(tmp_path / "run/tb"), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    board.Reload()
    shown = board.Images("probe/picture")
    files = [(tmp_path / f"run/images/probe/picture/step_{step:08d}.png").read_bytes() for step in (5, 10, 15, 20)]
    assert [(one.step, one.width, one.height) for one in shown] == [(step, 5, 2) for step in (5, 10, 15, 20)]
    assert [one.encoded_image_string for one in shown] == files
    (last,) = [one.histogram_value for one in board.Histograms("probe/counts") if one.step == 20]
    assert (last.min, last.max, last.num) == (0.5, 2.5, 2)
    assert last.sum == pytest.approx(3, abs=0.05), "of the middles of 64 bins"
    assert [one.step for one in board.Scalars("probe/sum")] == list(range(1, STEPS + 1))
    (segment,) = segments(tmp_path / "run")
    items = {item["_step"]: item for item in history(inspect(segment))}
    assert [step for step in items if any(name.startswith("probe/picture") for name in items[step])] == [5, 10, 15, 20]
    (picture,) = (segment / "files/media/images/probe").glob("picture_20_*.png")
    assert picture.read_bytes() == files[-1]
    assert items[20]["probe/sum"] == pytest.approx(rows(tmp_path / "run")[-1]["probe/sum"])
