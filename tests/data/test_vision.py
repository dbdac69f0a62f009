"""Models of timm and torchvision, CIFAR, ImageNet, augmentation and the mirror, beside the libraries themselves."""

import json
import os
import pickle
import random
import subprocess
import sys
from functools import partial
from hashlib import md5

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from options import option
from processes import REPOSITORY, command, rows, start, summary, train
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.batching.keys import AUGMENT, derive
from launcher.batching.loading import SeededDataset
from launcher.batching.stream import in_order
from launcher.config.components import build
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data import Data
from launcher.data.image_folder import FolderImages
from launcher.data.images import Erase, FlipAndShift, Together, augmentation
from launcher.models.mirrored import Mirrored
from launcher.run.saved import without_file
from launcher.training.finetune import begin

pytestmark = pytest.mark.versions

transforms = pytest.importorskip("torchvision.transforms.v2")
CPU = torch.device("cpu")
LIBRARIES = ("timm", "torchvision")
SMALL = "resnet18"


def make(library, shape=(3, 32, 32), outputs=10, seed=0, **changes):
    pytest.importorskip(library)
    torch.manual_seed(seed)
    settings = option("model", library, **changes)
    model = build("model", without_file(settings), input_shape=shape, num_outputs=outputs)
    begin(model, {"model.checkpoint": settings["checkpoint"]}, outputs, [])
    return model


def theirs(library, seed=0, **arguments):
    torch.manual_seed(seed)
    if library == "timm":
        return pytest.importorskip("timm").create_model(SMALL, **arguments)
    from torchvision.models import get_model

    return get_model(SMALL, weights=None, **arguments)


# Models


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


def test_group_norm_keeps_the_activations_that_timm_puts_into_its_norms():
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


# Data


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Files of the form of CIFAR's, with the MD5 sums of these in the place of the real ones."""
    from torchvision import datasets

    made = {}
    for classes, kind in ((10, datasets.CIFAR10), (100, datasets.CIFAR100)):
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        made[classes] = []

        def write(name, content, folder=folder):
            (folder / name).write_bytes(pickle.dumps(content))
            return md5((folder / name).read_bytes()).hexdigest()

        sums = {}
        for name, _ in [*kind.train_list, *kind.test_list]:
            images = np.random.RandomState(len(made[classes])).randint(0, 256, (2 * classes, 3072)).astype(np.uint8)
            labels = [i % classes for i in range(2 * classes)]
            sums[name] = write(name, {"data": images, "labels" if classes == 10 else "fine_labels": labels})
            made[classes].append(images)
        names = [f"class {i}" for i in range(classes)]
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], {kind.meta["key"]: names})})
        monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    return tmp_path, made


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_what_the_files_hold(classes, cifar):
    root, made = cifar
    data = build("data", option("data", f"cifar{classes}", root=str(root), validation=0.3))
    assert (data.name, data.input_shape, data.num_outputs) == (f"cifar{classes}", (3, 32, 32), classes)
    assert data.class_names[3] == "class 3"
    stored = np.concatenate(made[classes][:-1]).reshape(-1, 3, 32, 32)  # red, green, blue, row by row
    together = torch.cat([data.train.inputs, data.validation.inputs]).numpy()
    assert sorted(map(bytes, together)) == sorted(map(bytes, stored))
    np.testing.assert_array_equal(data.test.inputs.numpy(), made[classes][-1].reshape(-1, 3, 32, 32))
    assert data.test.targets.tolist() == [i % classes for i in range(2 * classes)]
    flips = data.train.augment(data.train.inputs, torch.rand(len(data.train), data.train.draws))
    assert flips.dtype == torch.uint8 and flips.shape == data.train.inputs.shape
    grey = torch.tensor([[[[128.0]]]]).expand(1, 3, 1, 1)
    published = {
        10: ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        100: ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    }
    mean, std = (torch.tensor(numbers) for numbers in published[classes])
    expected = (128 / 255 - mean) / std
    torch.testing.assert_close(data.test.prepare(grey).flatten(), expected, rtol=0, atol=2e-3)


def test_cifar_refuses(cifar):
    root, _ = cifar

    def refused(message, **changes):
        with pytest.raises(ConfigError, match=message):
            build("data", option("data", "cifar10", root=str(root)) | changes)

    refused(r"data\.root: None is no directory; .*cifar-10-batches-py", root=None)
    refused(r"data\.root: .*nowhere has no whole cifar-10-batches-py.*data\.download=true", root=str(root / "nowhere"))
    refused(r"data\.classes: 20 is neither 10 nor 100", classes=20)
    refused(r"data\.shift: 32 ", shift=32)
    refused(r"data\.random_erasing: 2 ", random_erasing=2)
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    refused(r"data\.root: .* has no whole")
    assert not (root / "nowhere").exists()


def folder(root, parts=("train",), side=24):
    image = pytest.importorskip("PIL.Image")
    for part in parts:
        for seed, label in enumerate(("ant", "bee")):
            (root / part / label).mkdir(parents=True)
            for i in range(10):
                pixels = np.random.RandomState(100 * seed + i).randint(0, 256, (side, side, 3))
                image.fromarray(pixels.astype(np.uint8)).save(root / part / label / f"{i}.png")
    return root


def pictures(root, **changes) -> Data:
    return build("data", option("data", "image_folder") | {"root": str(root), "image_size": 16} | changes)


def test_deep_images_keep_their_shades(tmp_path):
    """Pillow alone would make all of a 16-bit image white; nobody knows the range of one of floats."""
    from PIL import Image

    from launcher.data.image_folder import read_image

    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / f"deep.{suffix}")))[..., 1], ramp >> 8)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    dataset = FolderImages([(str(tmp_path / "float.tiff"), 0)], read_image, lambda image: image)
    with pytest.raises(BrokenFile, match=r"float\.tiff .*: its pixels are floats; save it with 8 or 16 bits"):
        dataset[0]


def test_training_images_are_measured_without_augmentation(tmp_path):
    data = pictures(folder(tmp_path), augment="trivial", random_erasing=0.5, min_scale=0.2)
    for workers in (0, 1):
        first, second = (torch.cat([x for x, _ in in_order(data.train, 0, 1, size, CPU, workers)]) for size in (3, 5))
        assert torch.equal(first, second) and len(first) == len(data.train)
    assert not torch.equal(torch.stack([data.train.dataset[i][0] for i in range(len(first))]).float(), first)


@pytest.mark.soak
def test_a_run_does_not_need_the_file_it_began_with_any_more(tmp_path):
    """Its own checkpoint has every weight: to go on, to predict, and in what is exported."""
    folder(tmp_path / "images")
    save_file(theirs("torchvision", num_classes=2).state_dict(), tmp_path / "begin.safetensors")
    words = ["data=image_folder", "data.root=images", "data.image_size=32", "model=torchvision", "num_workers=0"]
    words += ["model.checkpoint=begin.safetensors", f"model.name={SMALL}", "batch.global_size=8", "threads=1"]
    words += ["scheduler=constant", "hydra.run.dir=run"]
    train([*words, "epochs=1"], tmp_path).ok()
    (tmp_path / "begin.safetensors").unlink()
    train([*words, "epochs=2"], tmp_path, name="io1").ok()
    command("predict", ["run_dir=run", "num_workers=0", "part=test"], tmp_path).ok()
    command("export", ["run_dir=run", "num_workers=0", "output=out"], tmp_path).ok()
    assert "checkpoint" not in OmegaConf.load(tmp_path / "out/config.yaml").model
    refused = train([*words[:-1], "hydra.run.dir=other"], tmp_path, name="io2").wait()
    assert refused.status == [2] and "model.checkpoint=begin.safetensors: no weights are there" in refused.err()


def test_imagenet_keeps_its_validation_images_for_the_end(tmp_path):
    root = folder(tmp_path, ("train", "val"))
    settings = option("data", "imagenet", root=str(root), image_size=16, validation=0.1)
    data = build("data", settings)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 20]
    assert all("/val/" in path for path, _ in data.test.dataset.samples)
    assert all("/train/" in path for path, _ in data.validation.dataset.samples)
    both = build("data", settings | {"validation_folders": ["val"]})
    assert [len(part) for part in (both.train, both.validation, both.test)] == [20, 20, 20]
    steps = [type(step).__name__ for step in data.train.dataset.transform.transforms]
    assert steps == ["RandomResizedCrop", "RandomHorizontalFlip", "PILToTensor"]
    assert data.train.dataset.transform.transforms[0].scale == (0.08, 1.0)


LIBRARY = {
    "light": lambda: [transforms.ColorJitter(0.2, 0.2, 0.2)],
    "randaugment": lambda: [transforms.RandAugment()],
    "trivial": lambda: [transforms.TrivialAugmentWide()],
    "none": list,
}


@pytest.mark.parametrize("augment", LIBRARY)
@pytest.mark.parametrize("erasing", [0.0, 1.0])
def test_augmentation_is_torchvisions_and_belongs_to_the_sample(augment, erasing, tmp_path):
    data = pictures(folder(tmp_path), augment=augment, random_erasing=erasing)
    reference = [transforms.RandomResizedCrop(16, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
    reference += [*LIBRARY[augment](), transforms.PILToTensor()]
    if erasing:
        reference += [transforms.RandomErasing(1.0, value=[255 * m for m in (0.485, 0.456, 0.406)])]
    seeded = SeededDataset(data.train.dataset, partial(derive, 3, AUGMENT))
    plain = transforms.Compose(reference)
    from PIL import Image

    seen = []
    for number in (0, 5):
        for epoch in (0, 1):
            ours = seeded.__getitems__((epoch, np.array([number])))[0][0]
            torch.randn(7), random.random()  # whatever was drawn before
            assert torch.equal(ours, seeded.__getitems__((epoch, np.array([number])))[0][0])
            torch.manual_seed(derive(3, AUGMENT, epoch, number) >> 1)
            assert torch.equal(ours, plain(Image.open(data.train.dataset.samples[number][0])))
            assert ours.dtype == torch.uint8 and ours.shape == (3, 16, 16)
            seen.append(ours)
    assert not torch.equal(seen[0], seen[1])
    still = data.validation.dataset
    assert torch.equal(still[0][0], still[0][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "heavy"}, r"data\.augment: 'heavy' is unknown; pick one of none, light, randaugment, trivial"),
        ({"random_erasing": 1.2}, r"data\.random_erasing: 1\.2 "),
        ({"random_erasing": "often"}, r"data\.random_erasing: 'often' "),
        ({"test_folders": "val"}, r"data\.test_folders: 'val' is not a list"),
    ],
)
def test_image_folder_refuses(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pictures(folder(tmp_path), **changes)


def test_erasing_in_memory_paints_rectangles_of_the_papers_sizes():
    generator = torch.Generator().manual_seed(0)
    raw = torch.full((4000, 1, 40, 40), 9, dtype=torch.uint8)
    uniforms = torch.rand(4000, 5, generator=generator)
    result = Erase(0.6, [200.0])(raw, uniforms)
    painted = (result == 200).squeeze(1)
    assert result.dtype == torch.uint8 and set(result.unique().tolist()) == {9, 200}
    heights, widths = painted.any(2).sum(1), painted.any(1).sum(1)
    assert torch.equal(painted.sum((1, 2)), heights * widths), "each is one whole rectangle"
    chosen = heights > 0
    assert abs(chosen.float().mean() - 0.6) < 0.03
    area = (heights * widths)[chosen] / 1600
    assert area.min() > 0.01 and area.max() < 0.36 and abs(area.mean() - 0.175) < 0.01
    ratio = (heights / widths)[chosen].log()
    assert abs(ratio.mean()) < 0.06 and ratio.abs().max() < 1.45
    # Torchvision's own, by its mean area and the spread of its shapes.
    torch.manual_seed(0)
    library = transforms.RandomErasing(1.0)
    draws = [library.make_params([raw[0]]) for _ in range(2000)]
    areas = torch.tensor([draw["h"] * draw["w"] / 1600 for draw in draws])
    ratios = torch.tensor([draw["h"] / draw["w"] for draw in draws]).log()
    assert abs(areas.mean() - area.mean()) < 0.01 and abs(ratios.std() - ratio.std()) < 0.05
    for lines in (painted.any(1), painted.any(2)):  # anywhere, and at both ends alike
        often = lines.float().mean(0)
        assert often.min() > 0.01 and (often - often.flip(0)).abs().max() < 0.05
    alone = torch.cat([Erase(0.6, [200.0])(raw[i : i + 1], uniforms[i : i + 1]) for i in range(50)])
    assert torch.equal(alone, result[:50])


def test_augmentations_in_memory_one_after_the_other():
    raw = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    uniforms = torch.rand(30, 8)
    both = augmentation(True, 2, 0.5, 8, [1.0, 2.0, 3.0])
    assert isinstance(both, Together) and both.draws == 8
    expected = Erase(0.5, [1.0, 2.0, 3.0])(FlipAndShift(True, 2)(raw, uniforms[:, :3]), uniforms[:, 3:])
    assert torch.equal(both(raw, uniforms), expected)
    assert augmentation(False, 0, 0.0, 8, [0.0]) is None


# Two looks


def test_the_mirror_is_the_mean_of_both():
    model = make("torchvision", (3, 32, 32)).eval()
    images = torch.randn(3, 3, 32, 32)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    torch.testing.assert_close(Mirrored(model)(images), torch.stack([model(images), model(mirrored)]).mean(0))


def test_a_run_mirrors_its_test_part_alone_and_evaluate_can(tmp_path):
    """Digits: a mirror does them no good, which the test part shows and the validation part does not."""
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
    sys.argv = [str(REPOSITORY / "launcher/__main__.py"), *words]
    evaluate.main()
