"""Models of timm and torchvision against the libraries themselves."""

import os
import subprocess
import sys

import pytest
import torch
from processes import REPOSITORY, rows, train
from safetensors.torch import save_file
from torch import nn
from vision_options import make, theirs

from launcher.core.errors import ConfigError
from launcher.models.build import build_model, files_of
from launcher.models.pretrained import cached
from launcher.training.finetune import begin

pytestmark = pytest.mark.versions

LIBRARIES = ("timm", "torchvision")


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_the_librarys_own_model(library):
    ours, expected = make(library), theirs(library, num_classes=10)
    images = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), expected.train(mode)(images), rtol=0, atol=0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_grey_images(library):
    ours = make(library, (1, 28, 28)).eval()
    grey = torch.randn(2, 1, 28, 28)
    if library == "torchvision":
        expected = theirs(library, num_classes=10).eval()(torch.cat([grey] * 3, 1))
    else:
        expected = theirs(library, num_classes=10, in_chans=1).eval()(grey)
    torch.testing.assert_close(ours(grey), expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_group_norm_makes_a_samples_output_its_own(library):
    batch, group = make(library), make(library, norm="group")
    images = torch.randn(4, 3, 32, 32)
    assert not torch.allclose(batch(images)[:1], batch(images[:2])[:1], atol=1e-4)
    torch.testing.assert_close(group(images)[:1], group(images[:1]), rtol=1e-4, atol=1e-5)
    norms = [module for module in batch.modules() if isinstance(module, nn.BatchNorm2d)]
    replaced = [module for module in group.modules() if isinstance(module, nn.GroupNorm)]
    assert len(replaced) == len(norms) == 20 and not list(group.buffers())
    assert [norm.num_features for norm in norms] == [norm.num_channels for norm in replaced]
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(norms, replaced, strict=True))


def test_group_norm_keeps_the_activations_of_timms_norms():
    model = make("timm", name="efficientnet_b0", norm="group")
    plain = make("timm", name="efficientnet_b0")
    activations = [type(m).__name__ for m in plain.modules() if isinstance(m, nn.SiLU)]
    assert activations and [type(m).__name__ for m in model.modules() if isinstance(m, nn.SiLU)] == activations
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "wrapped"])
def test_weights_from_a_file_and_a_new_last_layer(library, suffix, tmp_path):
    trained = theirs(library, seed=7, num_classes=10)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(trained.state_dict(), path)
    else:
        weights = trained.state_dict()
        if suffix == "wrapped":
            weights = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}
        torch.save(weights, path)
    whole = make(library, checkpoint=str(path)).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(whole(images), trained.eval()(images), rtol=0, atol=0)
    fine, fresh = make(library, outputs=4, checkpoint=str(path)), make(library, outputs=4)
    for name, value in fine.state_dict().items():
        source = fresh.state_dict() if name.startswith("fc.") else trained.state_dict()
        assert torch.equal(value, source[name]), name


def test_refuses_what_makes_no_model(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    weights = theirs("torchvision", num_classes=10).state_dict()
    torch.save(weights, tmp_path / "right.pth")
    torch.save(weights | {"conv1.weight": torch.zeros(128, 3, 7, 7)}, tmp_path / "wide.pth")
    (tmp_path / "text.pth").write_text("no weights")

    def refused(message, library="torchvision", shape=(3, 32, 32), **changes):
        with pytest.raises(ConfigError, match=message):
            make(library, shape, **changes)

    for library in LIBRARIES:
        refused(r"model\.name: \w+ has no model 'resnet19'.*The nearest: .*resnet18", library, name="resnet19")
        refused(r"model\.name: \w+ has no model None", library, name=None)
        refused(rf"model={library} takes images", library, (13,))
        refused(r"model\.norm: 'layer' is unknown", library, norm="layer")
        refused(r"sizes", library, options={"sizes": 3})
    refused(r"model\.name: torchvision has no model 'fcn_resnet50'", name="fcn_resnet50")
    refused(r"takes images of 3 channels or 1, and the data give 4; pick model=timm", shape=(4, 32, 32))
    refused(r"model\.name: this model refuses images of 3 x 32 x 32: .*height", name="vit_b_16")
    refused(r"model\.checkpoint=.*none\.pth: no weights are there", checkpoint=str(tmp_path / "none.pth"))
    refused(r"model\.checkpoint=.*text\.pth: cannot be read as weights", checkpoint=str(tmp_path / "text.pth"))
    refused(r"model\.checkpoint=.*other\.pth: no tensor in .* fits the model", checkpoint=str(tmp_path / "other.pth"))
    refused(r"model\.checkpoint=.*wide\.pth has other shapes of 1 .*conv1", checkpoint=str(tmp_path / "wide.pth"))
    refused(r"model\.checkpoint=.*right\.pth lacks", name="resnet34", checkpoint=str(tmp_path / "right.pth"))


def test_without_the_library_it_says_how_to_install_it(tmp_path):
    # A directory ahead on the path stands for an installation in which neither imports.
    code = "from launcher.models import timm, torchvision\n"
    for library, more in (("timm", "0.0, "), ("torchvision", "")):
        (tmp_path / f"{library}.py").write_text("raise ImportError('not here')")
        code += f"try: {library}.create((3, 8, 8), 2, 'resnet18', {more}'batch', {{}})\n"
        code += "except ValueError as error: print(type(error).__name__, error)\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("ConfigError ") == done.stdout.count("'hydra-accelerate-launcher[vision]'") == 2


@pytest.mark.soak
def test_a_run_with_group_norm_has_the_same_rows_on_1_and_2_ranks(tmp_path):
    words = ["model=timm", "model.name=test_resnet", "model.norm=group", "batch.global_size=20", "max_steps=4",
             "log_every=1", "threads=1", "eval_every=2", "hydra.run.dir=run", "optimizer.lr=0.01"]  # fmt: skip
    pytest.importorskip("timm")
    for world in (1, 2):
        train(words, tmp_path, world, name=f"io{world}").ok(120)
        (tmp_path / "run").rename(tmp_path / f"run{world}")
    for row, other in zip(rows(tmp_path / "run1"), rows(tmp_path / "run2"), strict=True):
        assert other == pytest.approx(row, rel=1e-3)


def test_the_librarys_own_weights_come_from_its_cache(tmp_path, monkeypatch):
    """torchvision's from that of torch.hub, timm's from that of Hugging Face; what is not there is a sentence."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    for library, name in (("torchvision", "resnet18"), ("timm", "test_resnet.r160_in1k")):
        with pytest.raises(ConfigError, match=rf"pretrained=true: the weights of {name} are not in the cache"):
            cached({"_target_": f"launcher.models.{library}.create", "name": name})
    published = theirs("torchvision", seed=1, num_classes=1000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(published.state_dict(), tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    place = tmp_path / "hub/models--timm--test_resnet.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    (place / "snapshots/abc").mkdir(parents=True)
    small = pytest.importorskip("timm").create_model("test_resnet", num_classes=1000)
    save_file(small.state_dict(), place / "snapshots/abc/model.safetensors")
    for library, name, expected in (("torchvision", "resnet18", published), ("timm", "test_resnet.r160_in1k", small)):
        described = {"_target_": f"launcher.models.{library}.create", "name": name, "checkpoint": None, "norm": "batch"}
        described |= {"options": {}, "pretrained": True} | ({"drop_rate": 0.0} if library == "timm" else {})
        model = build_model(described, {"input_shape": (3, 32, 32), "num_outputs": 10})
        (line,) = begin(model, files_of(described), 10, [])
        assert "of another shape: fc.weight" in line
        own = model.state_dict()
        assert all(own[key].equal(one) for key, one in expected.state_dict().items() if not key.startswith("fc."))
    with pytest.raises(ConfigError, match=r"no model 'resnet50\.a9_in1k'.*resnet50\.a3_in1k.*list_pretrained"):
        make("timm", name="resnet50.a9_in1k")


def test_a_directory_with_one_file_of_weights_is_one_to_begin_with(tmp_path):
    torch.save(theirs("torchvision", seed=1, num_classes=10).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    model = make("torchvision")
    (line,) = begin(model, {"init_from": str(tmp_path)}, 10, [])
    assert "122 tensors from" in line and "missing" not in line
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"several files .*: other\.safetensors, resnet18-f37072fd\.pth\. Name one"):
        begin(model, {"init_from": str(tmp_path)}, 10, [])
