"""Wrong input: exit status 2, one message that names the setting, no traceback, and nothing left behind."""

import os
import subprocess
import sys
import time

import pytest
from processes import REPOSITORY, train

TABLE = "a,b,y\n" + "".join(f"{i},{i * 2},{i % 2}\n" for i in range(40))
BAD_TABLE = TABLE + "7,oops,1\n"

# What a person writes, and what the answer must hold.
WRONG = {
    "unknown option": (["optimizer=sgdd"], ["optimizer=sgdd", "adamw", "Did you mean sgd?"]),
    "misspelt key": (["epoch=3"], ["epoch", "Did you mean epochs?"]),
    "misspelt key in a group": (["optimizer.momentun=0.5"], ["optimizer.momentun", "optimizer.momentum"]),
    "a key of another option": (["optimizer=adam", "optimizer.momentum=0.9"], ["optimizer has: ", "betas"]),
    "key without its group": (["lr=0.1"], ["lr", "Use optimizer.lr=0.1."]),
    "unknown group": (["optimiser=sgd"], ["optimiser", "Did you mean optimizer?"]),
    "no override": (["sgd"], ["sgd", "key=value"]),
    "wrong type": (["epochs=many"], ["epochs=many", "whole number"]),
    "a fraction of a step": (["max_steps=2.5"], ["max_steps=2.5", "whole number"]),
    "negative size": (["batch.global_size=-4"], ["batch.global_size=-4", "at least 1"]),
    "zero size": (["batch.max_per_device=0"], ["batch.max_per_device=0", "at least 1"]),
    "negative rate": (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "greater than 0"]),
    "no rate at all": (["optimizer.lr=null"], ["optimizer.lr=null", "greater than 0"]),
    "a negative rate of a part": (["optimizer=muon", "optimizer.adamw_lr=-1"], ["optimizer.adamw_lr=-1", "at least 0"]),
    "two ways to step": (["optimizer.fused=true", "optimizer.foreach=true"], ["optimizer.fused and optimizer.foreach"]),
    "fp16 on a CPU": (["mixed_precision=fp16"], ["mixed_precision=fp16", "bf16"]),
    "unknown precision": (["mixed_precision=fp8"], ["mixed_precision=fp8", "bf16"]),
    "two ways to clip": (["clip_grad_norm=1", "clip_grad_value=1"], ["clip_grad_norm=1", "clip_grad_value=1", "null"]),
    "no weights to begin with": (["init_from=nowhere"], ["init_from=nowhere", "safetensors"]),
    "nothing to freeze": (["freeze=[head.*]"], ["freeze", "head.*", "layers.1.weight"]),
    "a group of nothing": (
        ["param_groups=[{match: layers.3.weigth, lr: 0.1}]"],
        ["param_groups", "weigth", "layers.3.weight"],
    ),
    "a group that says nothing": (["param_groups=[{match: '*'}]"], ["param_groups", "lr or weight_decay"]),
    "a group of frozen parameters": (
        ["freeze=['*bias']", "param_groups=[{match: '*bias', lr: 0.1}]"],
        ["param_groups", "frozen parameters alone"],
    ),
    "a group with another key": (["param_groups=[{match: '*', lr_mult: 0.1}]"], ["param_groups", "lr or weight_decay"]),
    "nothing left to train": (["freeze=['*']"], ["nothing to train"]),
    "a rate that grows towards the input": (["layer_decay=1.5"], ["layer_decay=1.5", "at most 1"]),
    "classes where there are none": (
        ["data=diabetes", "loss=mse", "sampling=balanced"],
        ["sampling=balanced", "regression", "shuffle"],
    ),
    "unknown sampling": (["sampling=weighted"], ["sampling=weighted", "balanced"]),
    "stopping by an unknown figure": (
        ["early_stopping.metric=eval/f1", "early_stopping.mode=max"],
        ["early_stopping.metric", "eval/macro_f1"],
    ),
    "stopping the wrong way": (["early_stopping.metric=eval/accuracy"], ["early_stopping.mode=min", "mode=max"]),
    "stopping without evaluations": (
        ["early_stopping.metric=eval/loss", "eval_every=null"],
        ["early_stopping.metric", "eval_every=null"],
    ),
    "no module to compute again": (["activation_checkpointing=[blocks.*]"], ["blocks.*", "layers.1"]),
    "all modules to compute again": (["activation_checkpointing=true"], ["activation_checkpointing=true", "list"]),
    "margin loss for a regression": (["data=diabetes", "loss=multi_margin"], ["loss", "regression", "mse"]),
    "class loss for a regression": (["data=diabetes", "loss=cross_entropy"], ["loss", "regression", "mse"]),
    "regression loss for classes": (["loss=mse"], ["loss", "classification", "cross_entropy"]),
    "missing data": (["data=fashion_mnist", "data.root=nowhere"], ["data.root", "nowhere"]),
    "missing table": (["data=csv", "data.path=no.csv", "data.target=y"], ["data.path", "no.csv"]),
    "missing column": (["data=csv", "data.path=table.csv", "data.target=z"], ["data.target", "z", "a, b, y"]),
    "text in a number column": (["data=csv", "data.path=bad.csv", "data.target=y"], ["bad.csv", "oops", "b", "42"]),
    "empty schedule": (["scheduler.T_max=0"], ["T_max", "0"]),
    "long warmup": (["scheduler.warmup=99epochs"], ["warmup", "99"]),
    "a file for a directory": (["hydra.run.dir=table.csv/run"], ["hydra.run.dir", "table.csv", "file"]),
    "one hook that is in no list": (["hooks={every: 3}"], ["hooks={every: 3}", "must be a list", "hooks=[...]"]),
    "a list for a group": (["mixup=[1]"], ["mixup=[1]", "must be no list", "mixup.NAME=..."]),
    "no teacher": (["task=distillation"], ["task.teacher.run_dir is missing", "task.teacher.run_dir=..."]),
    "a model of tokens for numbers": (["data=iris", "model=encoder"], ["Encoder", "vocab_size", "model=mlp"]),
    "a model of numbers for tokens": (["data=brackets"], ["MLP", "input_shape", "model=encoder"]),
    "a model of texts for a stream": (
        ["data=text", "data.path=table.csv", "data.block=8", "model=encoder"],
        ["Encoder", "vocab_size", "model=transformer"],
    ),
    "tokens to be hidden": (["data=brackets", "model=encoder", "task=masked"], ["task=masked", "tokens"]),
    "a target that is left out": (
        ["data=csv", "data.path=table.csv", "data.target=y", "data.drop=[y]"],
        ["data.drop", "'y'", "data.target"],
    ),
    "a column that is left out and kept": (
        ["data=csv", "data.path=table.csv", "data.target=y", "data.drop=[a]", "data.keep=[a]"],
        ["data.keep, data.drop", "'a'"],
    ),
    "no such class": (["model._target_=my.module.Net"], ["model._target_", "my.module.Net", "import"]),
    "no class at all": (["model._target_=os.path"], ["model._target_", "os.path"]),
    "an argument that the class lacks": (["+model.depth=3"], ["model.depth", "hidden"]),
    "no hidden unit": (["model.hidden=[0]"], ["model.hidden", "at least 1"]),
    "no such adapter": (["adapter=lorra"], ["adapter=lorra", "lora"]),
    "an adapter of no rank": (["adapter=lora", "adapter.rank=0"], ["adapter.rank=0", "at least 1"]),
    "a setting of no adapter": (["adapter.rank=4"], ["adapter.rank", "no such setting"]),
    "modules of no kind": (["adapter=lora", "adapter.target_modules=linear"], ["adapter.target_modules", "all-linear"]),
    "image model on a table": (["data=iris", "model=cnn"], ["model", "image"]),
    "unknown torchvision model": (
        ["model=torchvision", "model.name=resnet19"],
        ["model.name", "resnet19", "resnet18", "list_models"],
    ),
    "weights that are not there": (["model=torchvision", "model.checkpoint=no.pth"], ["model.checkpoint", "no.pth"]),
    "library model on a table": (["data=iris", "model=torchvision"], ["model=torchvision", "image", "[4]"]),
    "mixing of numbers to predict": (["data=diabetes", "loss=mse", "mixup.alpha=0.2"], ["mixup.alpha", "regression"]),
    "cutting a table": (["data=iris", "mixup.cutmix_alpha=1"], ["mixup.cutmix_alpha", "no images"]),
    "more than always": (["mixup.prob=1.5"], ["mixup.prob=1.5", "0 to 1"]),
    "a BatchNorm that sees one sample": (
        ["model=torchvision", "batch.max_per_device=1"],
        ["batch.max_per_device=1", "BatchNorm", "batch.max_per_device=2", "model.norm=group"],
    ),
    "a BatchNorm that sees one sample at the end of an epoch": (
        ["model=torchvision", "batch.global_size=1293"],
        ["batch.global_size=1293", "BatchNorm", "last update of an epoch", "batch.global_size=1294"],
    ),
    "mirror of a table": (["data=iris", "test_time_flip=true"], ["test_time_flip", "[4]"]),
    "no CIFAR": (["data=cifar10", "data.root=here"], ["data.root", "cifar-10-batches-py", "data.download"]),
    "unknown metric": (["metrics=[AUROCK]"], ["metrics", "AUROC"]),
    "a metric that is a number": (["metrics=[3]"], ["metrics=[3]", "a list of names", "_target_: my.module.Kappa"]),
    "a metric in small letters": (["metrics=[f1_score]"], ["metrics", "f1_score", "Did you mean F1Score?"]),
    "a metric of one's own by its name": (["metrics=[my.Kappa]"], ["metrics", "{_target_: my.Kappa}"]),
    "hook by its name alone": (["hooks=[my.module.Hook]"], ["hooks=['my.module.Hook']", "_target_: my.module.Hook"]),
    "hook without a class": (["hooks=[{every: 3}]"], ["hooks=", "_target_: my.module.Hook"]),
    "hook that is not there": (["hooks=[{_target_: nowhere.Hook}]"], ["hooks", "nowhere.Hook"]),
    "the worst as the best": (["checkpoint.best=eval/accuracy"], ["checkpoint.best_mode=min", "best_mode=max"]),
    "a rate that would wait for ever": (
        ["scheduler=plateau", "eval_every=null"],
        ["scheduler.metric", "eval_every=null"],
    ),
    "what is read as two settings": (["hydra.run.dir=a/b=c"], ["hydra.run.dir='a/b=c'", "quote"]),
    "unknown figure": (
        ["checkpoint.best=eval/f1", "checkpoint.best_mode=max"],
        ["checkpoint.best=eval/f1", "eval/macro_f1"],
    ),
    "plateau without its figure": (
        ["scheduler=plateau", "scheduler.metric=eval/mae"],
        ["scheduler.metric", "eval/loss"],
    ),
    "no source": (["data._target_=os.getcwd"], ["data._target_", "launcher.data.Data"]),
    "unknown mode": (["wandb.mode=off"], ["wandb.mode", "disabled"]),
    "unknown artifacts": (["wandb.artifacts=last"], ["wandb.artifacts=last", "best or all"]),
    "unknown histograms": (["wandb.watch=weights"], ["wandb.watch=weights", "gradients, parameters or all"]),
    "a table of fewer than no rows": (["wandb.tables=-1"], ["wandb.tables=-1", "at least 0"]),
    "histograms of parts": (["wandb.watch=all", "strategy=fsdp"], ["wandb.watch=all", "strategy=ddp"]),
    "a table for weights": (["init_from=table.csv"], ["init_from=table.csv", "weights"]),
    "no tokenizer": (
        ["data=text", "model=transformer", "data.path=table.csv", "data.tokenizer=none.json"],
        ["data.tokenizer", "none.json"],
    ),
    "a text shorter than a block": (
        ["data=text", "model=transformer", "data.path=table.csv", "data.block=200"],
        ["data.path", "data.block=200", "table.csv"],
    ),
    "tokens to be mixed": (
        ["data=text", "model=transformer", "data.path=table.csv", "data.block=8", "mixup.alpha=0.2"],
        ["mixup.alpha", "language"],
    ),
    "a block that no model has": (["strategy=fsdp", "strategy.block=Layer"], ["strategy.block=Layer", "Linear"]),
    "an average that never moves": (["ema_decay=1"], ["ema_decay=1", "below 1"]),
    "no duration": (["max_time=soon"], ["max_time=soon", "90m"]),
    "unknown weights": (["loss.weight=[1,2]"], ["loss.weight", "10"]),
    "unmatched shards": (["exact_across_devices=true", "canonical_shards=0"], ["canonical_shards=0", "at least 1"]),
}


def _answer(directory, words, world=1, environment=None, delays=()):
    """Run it; check status, time, silence elsewhere; give the message."""
    before = sorted(str(path) for path in directory.rglob("*"))
    started = time.monotonic()
    run = train(words, directory, world, environment, delays, name="../io").wait(60)
    seconds = time.monotonic() - started
    assert run.status == [2] * world, run.err()
    assert "Traceback" not in run.err() and run.err().startswith("error: ")
    assert run.out() == ""
    assert sorted(str(path) for path in directory.rglob("*")) == before, "something was left behind"
    return run.err(), seconds


@pytest.fixture
def place(tmp_path):
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "table.csv").write_text(TABLE)
    (directory / "bad.csv").write_text(BAD_TABLE)
    return directory


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_gets_one_clear_answer(what, place):
    words, expected = WRONG[what]
    message, seconds = _answer(place, words)
    for text in expected:
        assert text in message, message
    assert seconds < 15  # of a warmed process on a busy machine; the whole command is timed below


def test_fewer_samples_than_devices(place):
    message, _ = _answer(place, ["batch.global_size=1"], world=2)
    assert "batch.global_size=1" in message and "2 devices" in message


def test_devices_that_do_not_divide_the_shards(place):
    """The rank that starts late hears it too, from a rank 0 that has ended."""
    message, _ = _answer(place, ["exact_across_devices=true", "canonical_shards=3"], 2, delays=(0, 4))
    assert "canonical_shards=3" in message and "2 devices" in message


@pytest.mark.parametrize(
    ("words", "limit"), [(["epoch=1"], 1.5), (["optimizer=sgdd"], 1.5), (["--cfg", "job"], 1.5), (["--help"], 1.5)]
)
def test_answers_that_need_no_torch_load_none(words, limit, tmp_path):
    code = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "import os; os._exit = sys.exit\n"
        f"sys.argv[0] = {str(REPOSITORY / 'launcher/train.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.rstrip().endswith("False"), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_a_launcher_that_started_fewer_processes_than_asked_for(place):
    """`accelerate launch --num_processes 2` without --multi_gpu sets an address for two and starts one."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1"}
    accelerate = os.path.join(os.path.dirname(sys.executable), "accelerate")
    done = subprocess.run(
        [accelerate, "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
         "--dynamo_backend", "no", str(REPOSITORY / "launcher/train.py")],
        cwd=place, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "error: accelerate launch was asked for 2 processes and started one" in done.stderr
    assert "--multi_gpu --num_processes 2" in done.stderr and "Traceback" not in done.stderr.partition("error:")[0]
    assert "exit status 2" in done.stderr
    assert len(list(place.iterdir())) == 2


def test_a_directory_in_use_and_one_of_another_run(place):
    first = train(
        ["hydra.run.dir=run", "epochs=100000", "checkpoint.every=null", "eval_every=null"], place, name="../io0"
    )
    deadline = time.monotonic() + 60
    while not (place / "run/metrics.jsonl").exists() or not (place / "run/metrics.jsonl").read_text():
        assert time.monotonic() < deadline and first.processes[0].exitcode is None, first.err()
        time.sleep(0.1)
    message, _ = _answer_in(place, ["hydra.run.dir=run", "epochs=100000", "checkpoint.every=null", "eval_every=null"])
    assert "a run is in it" in message and str(first.processes[0].pid) in message
    message, _ = _answer_in(place, ["hydra.run.dir=run", "optimizer.lr=0.5", "loss=focal"])
    assert "optimizer.lr: 0.1 -> 0.5" in message and "loss._target_" in message and "eval_every" in message
    first.signal(0, 15)
    first.ok()


def _answer_in(directory, words):
    run = train(words, directory, name="../io1").wait(60)
    assert run.status == [2], run.err()
    assert "Traceback" not in run.err()
    return run.err(), 0
