"""An image and its mirror."""

import json
import os

import pytest
import torch
from omegaconf import OmegaConf
from options import option
from processes import rows, start, summary, train
from safetensors.torch import load_file
from vision_options import make

from launcher.config.components import build
from launcher.models.mirrored import Mirrored

pytestmark = pytest.mark.versions


def test_the_mirror_is_the_mean_of_both():
    model = make("torchvision", (3, 32, 32)).eval()
    images = torch.randn(3, 3, 32, 32)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    torch.testing.assert_close(Mirrored(model)(images), torch.stack([model(images), model(mirrored)]).mean(0))


def test_a_run_mirrors_its_test_part_alone_and_evaluate_can(tmp_path):
    """Digits: a mirror does them no good, which the test split shows and the validation split does not."""
    words = ["model=cnn", "model.channels=[8]", "model.dense=16", "epochs=3", "threads=1", "eval_every=epoch"]
    flipped = ["test_time_flip=true"]
    for name, more in (("plain", []), ("flipped", flipped)):
        train([*words, *more, f"hydra.run.dir={name}"], tmp_path, name=f"io{name}").ok()
    assert rows(tmp_path / "plain") == rows(tmp_path / "flipped")
    plain, mirrored = (summary(tmp_path / name)["final"]["test/accuracy"] for name in ("plain", "flipped"))
    assert mirrored < plain
    data = build("data", option("data", "digits"))
    settings = OmegaConf.to_container(OmegaConf.load(tmp_path / "flipped/.hydra/config.yaml"))
    model = build("model", settings["model"], **data.facts()).eval()
    model.load_state_dict(load_file(max((tmp_path / "flipped/checkpoints").glob("step_*")) / "model.safetensors"))
    with torch.no_grad():
        images = data.test.prepare(data.test.inputs)
        right = (model(images) + model(images.flip(-1))).argmax(1) == data.test.targets
    assert mirrored == pytest.approx(right.float().mean().item())
    for run, more, expected in (("flipped", [], mirrored), ("plain", flipped, mirrored), ("plain", [], plain)):
        start(_evaluate, ([f"run_dir={run}", *more], str(tmp_path)), tmp_path / "io").ok()
        found = json.loads((tmp_path / run / "evaluation_test.json").read_text())["metrics"]["accuracy"]
        assert found == pytest.approx(expected)


def _evaluate(words, directory):
    from launcher.commands import evaluate

    os.chdir(directory)
    evaluate.command(words)
