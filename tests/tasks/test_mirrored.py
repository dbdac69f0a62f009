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
from launcher.core.errors import ConfigError
from launcher.data import DatasetSplit
from launcher.losses.per_sample import PerSample
from launcher.tasks.masked import MaskedReconstruction as Masked
from launcher.tasks.mirrored import Mirrored, check_mirror
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised

pytestmark = pytest.mark.versions


def test_the_mirror_is_the_mean_of_both():
    model = make("torchvision", (3, 32, 32)).eval()
    images = torch.randn(3, 3, 32, 32)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    torch.testing.assert_close(Mirrored(model)(images), torch.stack([model(images), model(mirrored)]).mean(0))


def test_the_classes_of_mirrored_pixels_are_turned_back():
    """A model that says of each pixel what is in it says the same of an image and its mirror, in the other order."""
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(Mirrored(torch.nn.Identity())(images), images)


def test_only_images_and_outputs_are_mirrored():
    data = build("data", option("data", "digits"))
    supervised, masked = (
        Supervised(PerSample(torch.nn.CrossEntropyLoss()), Outputs("classification", 10)),
        Masked(0.5, (1, 8, 8)),
    )
    check_mirror(data, supervised)
    with pytest.raises(ConfigError, match=r"test_time_flip: the task MaskedReconstruction .*set it to false"):
        check_mirror(data, masked)
    pixels = data.train.prepare(data.train.inputs[:4])
    samples = [({"image": image}, 0) for image in pixels]
    data.train = DatasetSplit(samples, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="test_time_flip: data=digits gives inputs in a dict"):
        check_mirror(data, supervised)


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
