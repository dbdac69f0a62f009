"""The best checkpoint counts: it is measured at the end of a run, and taken by every command that is not told."""

import csv
import functools
import json
import shutil
import signal

import pytest
import torch
from kill_loop import NETS, place
from processes import command, own, rows, summary, train
from safetensors.torch import load_file

RUN = ["data._target_=own.load", "batch.global_size=14", "epochs=6", "eval_every=3", "checkpoint.every=5",
       "log_every=4", "threads=1", "hydra.run.dir=run", "optimizer=sgd", "scheduler=constant",
       "model.dropout=0"]  # fmt: skip
# The learning rate grows: the best is somewhere before the end.
GROWING = "torch.optim.lr_scheduler.ExponentialLR"
WORSE = ["optimizer.lr=0.02", f"scheduler._target_={GROWING}", "+scheduler.gamma=1.35"]
KINDS = {
    "plain": (["model.hidden=[8]"], 1),
    "two ranks": (["model.hidden=[8]"], 2),
    "three ranks": (["model.hidden=[8]"], 3),
    "moving average": (["model.hidden=[8]", "ema_decay=0.5"], 1),
    "batchnorm, moving average": (["model._target_=own.Net", "ema_decay=0.5"], 2),
    "fsdp": (["model.hidden=[8,8]", "strategy=fsdp"], 2),
    "fsdp, moving average": (["model.hidden=[8,8]", "strategy=fsdp", "ema_decay=0.5"], 2),
    "exact": (["model.hidden=[8]", "exact_across_devices=true", "canonical_shards=4"], 2),
}


def measured_by_hand(directory, step, kind):
    """Accuracy and loss on the test part of the weights of a step, by plain torch."""
    weights = load_file(directory / f"run/checkpoints/step_{step:08d}/model.safetensors")
    part = own(directory).load().test
    if "batchnorm" in kind:
        net = own(directory).Net(5, 3)
        net.load_state_dict(weights)
        outputs = net.eval()(part.inputs)
    else:
        outputs, names = part.inputs, sorted({name.rpartition(".")[0] for name in weights})
        for number, name in enumerate(names):
            outputs = outputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
            outputs = outputs.relu() if number < len(names) - 1 else outputs
    accuracy = (outputs.argmax(1) == part.targets).float().mean().item()
    return accuracy, torch.nn.functional.cross_entropy(outputs, part.targets).item()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Gives the directory of a run of a kind, which is run once."""

    @functools.cache
    def of(kind):
        words, world = KINDS[kind]
        found = place(tmp_path_factory.mktemp("best"), NETS)
        words = words if "hidden" in words[0] else [*words, "~model.dropout"]
        base = [word for word in RUN if not word.startswith("model.dropout") or "~model.dropout" not in words]
        train([*base, *WORSE, *words], found, world, pictures=True).ok()
        return found

    return of


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(one, marks=() if one in ("plain", "batchnorm, moving average", "fsdp") else pytest.mark.soak)
        for one in KINDS
    ],
)
def test_the_end_measures_the_best_and_the_last(kind, runs):
    directory = runs(kind)
    found = summary(directory / "run")
    evaluated = {row["step"]: row["eval/loss"] for row in rows(directory / "run") if "eval/loss" in row}
    best = min(evaluated, key=evaluated.get)
    assert found["best_step"] == best < found["step"] == max(evaluated), "the run is no example"
    detail = json.loads((directory / "run/evaluation.json").read_text())
    assert (detail["step"], detail["which"]) == (best, "best")
    assert (detail["last"]["step"], detail["last"]["which"]) == (found["step"], "last")
    for group, step, details in (("best", best, detail), ("final", found["step"], detail["last"])):
        accuracy, loss = measured_by_hand(directory, step, kind)
        assert found[group]["test/accuracy"] == details["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert found[group]["test/loss"] == details["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["final"]["test/loss"] != found["best"]["test/loss"]


def test_everything_says_which_steps_they_are(runs):
    directory = runs("plain")
    found = summary(directory / "run")
    heading = f"final (step {found['step']})  best (step {found['best_step']})"
    assert heading in (directory / "io/out.0").read_text()
    page = (directory / "run/report.html").read_text()
    assert f"<th>final (step {found['step']})</th><th>best (step {found['best_step']})</th>" in page
    for text in ("test accuracy", "Classes", "Confusion"):
        assert f"{text} (best, step {found['best_step']})" in page


def test_every_command_takes_the_best_unless_told_otherwise(runs, tmp_path):
    shutil.copytree(runs("plain"), tmp_path / "copy")
    here = tmp_path / "copy"
    found = summary(here / "run")
    best, last = (f"step_{found[key]:08d}" for key in ("best_step", "step"))
    for words, name, which, group in (([], best, "best", "best"), (["checkpoint=last"], last, "last", "final"),
                                      (["checkpoint=best"], best, "best", "best")):  # fmt: skip
        out = command("evaluate", ["run", *words], here).ok().out()
        assert f"{name} ({which})" in out
        content = json.loads((here / "run/evaluation_test.json").read_text())
        assert (content["checkpoint"], content["which"]) == (name, which)
        assert content["step"] == int(name[5:])
        for figure, value in content["metrics"].items():
            assert value == pytest.approx(found[group][f"test/{figure}"], rel=1e-6)
        out = command("predict", ["run", "part=test", *words], here).ok().out()
        assert f"{name} ({which})" in out
        with (here / "predictions.csv").open() as file:
            table = list(csv.DictReader(file))
        right = sum(row["predicted"] == row["target"] for row in table) / len(table)
        assert right == pytest.approx(found[group]["test/accuracy"])
        out = command("export", ["run", f"output=out{len(words)}{name}", *words], here, name="io-export").ok().out()
        card = (here / f"out{len(words)}{name}/README.md").read_text()
        assert f"{name} ({which}) of the run" in card and "test part, these weights" in card
        assert json.loads((here / f"out{len(words)}{name}/metadata.json").read_text())["which"] == which
        shutil.rmtree(here / f"out{len(words)}{name}")
    assert (runs("plain") / "run/checkpoints/best").readlink().name == best
    named = command("evaluate", ["run", f"checkpoint={found['best_step']}"], here).ok().out()
    assert f"{best} (best)" in named


def test_where_no_best_is_kept_all_take_the_last(tmp_path):
    directory = place(tmp_path, NETS)
    train([*RUN, *WORSE, "model.hidden=[8]", "checkpoint.best=null"], directory, name="io-train").ok()
    found = summary(directory / "run")
    assert found["best"] == {} and found["best_step"] is None and "test/accuracy" in found["final"]
    detail = json.loads((directory / "run/evaluation.json").read_text())
    assert detail["which"] == "last" and "last" not in detail
    for program, words in (("evaluate", []), ("predict", ["part=test"]), ("export", [])):
        command(program, ["run", *words], directory).ok()
    assert "(last)" in command("evaluate", ["run"], directory).ok().out()
    assert not (directory / "run/checkpoints/best").is_symlink()
    refused = command("evaluate", ["run", "checkpoint=best"], directory).wait()
    assert refused.status == [2] and "checkpoint=last" in refused.err()
    assert f"final (step {found['step']})  best\n" in (directory / "io-train/out.0").read_text()


def test_where_the_best_was_not_saved_the_last_alone_is_measured(tmp_path):
    directory = place(tmp_path, NETS)
    out = train([*RUN, *WORSE, "model.hidden=[8]", "checkpoint.every=null"], directory).ok()
    found = summary(directory / "run")
    assert found["best_step"] < found["step"] and "test/accuracy" in found["final"]
    assert "test/accuracy" not in found["best"] and "eval/loss" in found["best"]
    detail = json.loads((directory / "run/evaluation.json").read_text())
    assert (detail["which"], detail["step"]) == ("last", found["step"])
    assert f"not by the best, of step {found['best_step']}: it was not saved" in out.out()


def test_where_the_best_is_the_last_it_is_measured_once(tmp_path):
    """The model counts its forwards in evaluation mode: one over the test part, and two samples tried before."""
    code = (
        NETS
        + """
import os

class Counted(Net):
    def forward(self, x):
        if not self.training:
            with open("forwards", "a") as file:
                file.write(f"{len(x)}\\n")
        return super().forward(x)
"""
    )
    counts = {}
    for name, words in (("better", ["optimizer.lr=0.003"]), ("worse", WORSE)):
        directory = place(tmp_path / name, code)
        base = [word for word in RUN if not word.startswith("model.dropout")]
        train([*base, *words, "model._target_=own.Counted"], directory).ok()
        found = summary(directory / "run")
        assert (found["best_step"] == found["step"]) == (name == "better"), "the run is no example"
        assert {n for n in found["best"] if n.startswith("test/")} == {
            n for n in found["final"] if n.startswith("test/")
        }
        samples = sum(map(int, (directory / "forwards").read_text().split())) - 2
        counts[name] = samples / 30 - sum("eval/loss" in row for row in rows(directory / "run"))
    assert counts == {"better": 1, "worse": 2}


@pytest.mark.parametrize(("number", "after"), [(signal.SIGTERM, 10), (signal.SIGKILL, 11)])
def test_interrupted_in_the_test_of_the_best_it_is_measured_by_the_next_start(number, after, tmp_path):
    """After ten validations, and for the kill the test part by the last model: in the next batch."""
    code = (
        NETS
        + f"""
import os, time
from launcher.models.mlp import MLP

class Slow(MLP):
    seen = 0

    def forward(self, x):
        if not self.training and os.environ.get("SLOW"):
            before, self.seen = self.seen, self.seen + len(x)
            if before <= {after} * 30 < self.seen:
                os.kill(os.getpid(), {number:d})
                time.sleep(0.5)
        return super().forward(x)
"""
    )
    directory = place(tmp_path, code)
    words = [*RUN, *WORSE, "model.hidden=[8]", "model._target_=own.Slow"]
    run = train(words, directory, environment={"SLOW": "1"}).wait()
    assert run.status == [0 if number == signal.SIGTERM else -number], run.err()
    assert not (directory / "run/evaluation.json").exists()
    train(words, directory, name="io1").ok()
    found = summary(directory / "run")
    assert found["status"] == "finished" and found["best_step"] < found["step"]
    calm = place(tmp_path / "calm", code)
    train(words, calm).ok()
    assert summary(calm / "run")["best"] == found["best"] and summary(calm / "run")["final"] == found["final"]
