"""Stopped and gone on with, a run on a GPU ends with the bits of one that went through."""

import pytest
from gpus import ON
from on_gpu import IMAGES, TOKENS, finish, same_state

pytestmark = pytest.mark.gpu
HALF = ["mixed_precision=bf16"]
RUNS = {
    "adam, channels_last": ([*IMAGES, "optimizer=adam", "channels_last=true"], 1),
    "exact, channels_last": ([*IMAGES, "optimizer=adam", "channels_last=true", "exact_across_devices=true"], 1),
    "muon, channels_last": ([*IMAGES, "optimizer=muon", "channels_last=true"], 1),
    "bf16, channels_last": ([*IMAGES, "optimizer=adamw", "channels_last=true", "ema_decay=0.9", *HALF], 1),
    "fp16": ([*IMAGES, "optimizer=sgd", "mixed_precision=fp16", "clip_grad_norm=1.0"], 1),
    "augmented": ([*(w.replace("=images", "=images +data.augment=true") for w in IMAGES), "optimizer=adam"], 1),
    "tokens, dropout": ([*TOKENS, "model.dropout=0.1", *HALF], 1),
    "ddp": ([*IMAGES, "optimizer=adam", "channels_last=true", "batch.max_per_device=3"], 2),
    "fsdp": ([*TOKENS, "strategy=fsdp", "ema_decay=0.9", *HALF], 2),
}


@pytest.mark.parametrize("kind", RUNS)
def test_ten_updates_then_ten_more_are_twenty(kind, tmp_path):
    words, world = RUNS[kind]
    words = [part for word in words for part in word.split(" ")]
    if kind == "fp16" and ON == "cpu":
        pytest.skip("a CPU has no fp16")
    straight = finish([*words, "max_steps=20"], tmp_path / "straight", world)
    parted = finish([*words, "max_steps=10"], tmp_path / "parted", world)
    finish([*words, "max_steps=20"], parted, world, "io1")
    same_state(straight, parted)
