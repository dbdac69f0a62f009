"""Two ranks that share a GPU, over gloo, beside one process."""

import json

import pytest
import torch
from gpus import ON
from kill_loop import flat, newest
from on_gpu import IMAGES, TOKENS, finish, run
from processes import command, rows, summary, train
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu
STEPS = [*IMAGES, "max_steps=12"]


def alike(one, other, rel=2e-3):
    """The records agree but for rounding."""
    for row, expected in zip(rows(one / "run"), rows(other / "run"), strict=True):
        assert row == pytest.approx(expected, rel=rel, abs=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        [*STEPS, "optimizer=sgd"],
        [*STEPS, "optimizer=adam", "channels_last=true", "batch.max_per_device=3", "clip_grad_norm=1.0"],
        [*TOKENS, "max_steps=12", "ema_decay=0.9"],
        [*STEPS, "optimizer=adamw", "strategy=fsdp"],
        [*TOKENS, "max_steps=12", "strategy=fsdp", "strategy.accumulate_whole=true", "batch.max_per_device=2"],
    ],
    ids=["ddp", "ddp-channels_last", "ddp-tokens", "fsdp", "fsdp-tokens"],
)
def test_two_ranks_do_what_one_process_does(words, tmp_path):
    alone, shared = finish(words, tmp_path / "alone"), finish(words, tmp_path / "shared", 2)
    assert summary(shared / "run")["world_size"] == 2
    alike(shared, alone)


def test_exact_across_devices_gives_the_same_bits_on_both(tmp_path):
    words = [*STEPS, "exact_across_devices=true", "optimizer=adam", "channels_last=true", "model.dropout=0.2"]
    alone, shared = finish(words, tmp_path / "alone"), finish(words, tmp_path / "shared", 2)
    first, second = (load_file(newest(d) / "model.safetensors") for d in (alone, shared))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (alone / "run/metrics.jsonl").read_text() == (shared / "run/metrics.jsonl").read_text()


def test_fsdp_in_bf16(tmp_path):
    words = [*TOKENS, "max_steps=30", "strategy=fsdp", "mixed_precision=bf16", "optimizer.lr=0.01"]
    losses = [row["train/loss"] for row in rows(finish(words, tmp_path, 2) / "run") if "train/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(ON == "cpu" or torch.cuda.device_count() != 1, reason="needs one GPU")
def test_without_being_asked_to_they_do_not_share_it(tmp_path):
    refused = train(STEPS, tmp_path, 2).wait(120)
    assert refused.status == [2, 2] and "device=shared" in refused.err()


def test_evaluate_measures_with_two_ranks_what_one_measures(tmp_path):
    finish(STEPS, tmp_path)
    found = []
    for world in (1, 2):
        device = "cpu" if ON == "cpu" else "shared" if world == 2 else "auto"
        words = ["run_dir=run", f"device={device}", f"output=measured{world}.json"]
        command("evaluate", words, tmp_path, world, name=f"io{world}").ok(120)
        content = dict(flat(json.loads((tmp_path / f"measured{world}.json").read_text())))
        found.append({name: value for name, value in content.items() if isinstance(value, int | float)})
    assert len(found[0]) > 5 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_run_that_began_on_two_ranks_goes_on_in_one_process(tmp_path):
    words = [*IMAGES, "optimizer=adam", "channels_last=true"]
    moved, calm = tmp_path / "moved", finish([*words, "max_steps=12"], tmp_path / "calm")
    finish([*words, "max_steps=6"], moved, 2)
    run([*words, "max_steps=12"], moved, name="io1").ok(120)
    first, second = (load_file(newest(d) / "model.safetensors") for d in (calm, moved))
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, rtol=1e-3, atol=1e-5)
