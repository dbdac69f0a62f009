"""Runs on the GPU of this machine, one process or two that share it; with GPU_TESTS_ON=cpu the same on the CPU."""

import json

import torch
from gpus import ON
from kill_loop import flat, newest
from processes import train
from safetensors.torch import load_file

IMAGES = [
    "data._target_=combination_parts.load", "+data.kind=images", "model=cnn", "model.channels=[8,16]", "model.dense=8",
    "model.dropout=0.0", "batch.global_size=8", "epochs=1000", "scheduler=constant", "threads=1", "trackers=[]",
    "log_every=1", "eval_every=null", "checkpoint.best=null", "checkpoint.every=null", "hydra.run.dir=run",
]  # fmt: skip
TOKENS = [
    *(word for word in IMAGES if not word.startswith(("+data.kind", "model"))), "+data.kind=tokens",
    "model=transformer", "model.width=32", "model.layers=2", "model.heads=2", "optimizer=adamw",
]  # fmt: skip


def run(words, directory, world=1, name="io"):
    """Start a run on the GPU; several ranks share it."""
    device = "cpu" if ON == "cpu" else "shared" if world > 1 else "auto"
    directory.mkdir(parents=True, exist_ok=True)
    return train([*words, f"device={device}"], directory, world, name=name)


def finish(words, directory, world=1, name="io"):
    """A run to its end, that was where it should have been; its directory."""
    run(words, directory, world, name).ok(180)
    made = json.loads((directory / "run/provenance.json").read_text())
    assert (made["device"] == "CPU") is (ON == "cpu")
    return directory


def same_state(one, other):
    """Weights, those of a moving average too, and the optimizer's state of the newest checkpoints, to the last bit."""
    assert newest(one).name == newest(other).name
    first, second = (load_file(newest(d) / "model.safetensors") for d in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(newest(d) / "state.pt", weights_only=True) for d in (one, other)]
    first, second = (dict(flat({"model": s["model"], "optimizer": s["optimizer"]["state"]})) for s in states)
    assert first.keys() == second.keys() and len(first) > 1
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
