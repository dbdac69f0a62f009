"""What a step does on a GPU: precisions, the compiler, the same bits again, augmentation."""

import shutil

import pytest
import torch
from combination_parts import load
from gpus import ON
from on_gpu import IMAGES, TOKENS, finish, same_state
from processes import rows, train

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if ON == "cpu" else "cuda"


def losses(directory):
    return [row["train/loss"] for row in rows(directory / "run") if "train/loss" in row]


@pytest.mark.parametrize("words", [IMAGES, TOKENS], ids=["images", "tokens"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_float32_learns(precision, words, tmp_path):
    if precision == "fp16" and ON == "cpu":
        pytest.skip("a CPU has no fp16")
    words = [*words, "max_steps=40"]
    half = losses(finish([*words, f"mixed_precision={precision}"], tmp_path / "half"))
    whole = losses(finish(words, tmp_path / "whole"))
    assert half[0] == pytest.approx(whole[0], rel=0.02)
    assert half[-1] < half[0] and half[-1] == pytest.approx(whole[-1], rel=0.2)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="needs a C compiler")
def test_the_compiler_changes_rounding_alone(tmp_path):
    words = [*TOKENS, "max_steps=6"]
    compiled = losses(finish([*words, "compile=true"], tmp_path / "compiled"))
    assert compiled == pytest.approx(losses(finish(words, tmp_path / "plain")), rel=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        [*IMAGES, "+data.augment=true", "channels_last=true", "mixed_precision=bf16", "model.dropout=0.2"],
        [*TOKENS, "mixed_precision=bf16", "model.dropout=0.1"],
    ],
    ids=["images", "tokens"],
)
def test_deterministic_gives_the_same_bits_again(words, tmp_path):
    words = [*words, "deterministic=true", "max_steps=20", "optimizer=adamw"]
    same_state(finish(words, tmp_path / "one"), finish(words, tmp_path / "other"))


def test_random_erasing_paints_what_it_paints_on_the_cpu():
    part = load("images", augment=True).train
    uniforms = torch.rand(len(part), part.draws, generator=torch.Generator().manual_seed(1))
    here = part.augment(part.inputs, uniforms)
    there = part.augment(part.inputs.to(DEVICE), uniforms.to(DEVICE))
    assert there.device.type == DEVICE and torch.equal(there.cpu(), here)
    assert not torch.equal(here, part.inputs)


def test_a_gpu_computes_what_the_cpu_computes(tmp_path):
    words = [*IMAGES, "max_steps=12", "optimizer=adam"]
    there = losses(finish(words, tmp_path / "there"))
    (tmp_path / "here").mkdir()
    train([*words, "device=cpu"], tmp_path / "here").ok(120)
    assert there == pytest.approx(losses(tmp_path / "here"), rel=1e-3)


def test_auto_finds_a_size(tmp_path):
    finish([*IMAGES, "batch.max_per_device=auto", "max_steps=4"], tmp_path)
