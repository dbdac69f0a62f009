"""Columns of masks beside the arrays that were written into them."""

import io

import numpy as np
import pytest
import torch
from datasets_on_disk import cache, datasets, every, load  # noqa: F401
from PIL import Image
from processes import rows, train

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.masks import classes_of

pytestmark = pytest.mark.versions


def arrays(n=20, height=5, width=6, classes=3, seed=0):
    random = np.random.RandomState(seed)
    images = random.randint(256, size=(n, height, width)).astype(np.uint8)
    masks = random.randint(classes, size=(n, height, width)).astype(np.uint8)
    masks[:, 0, 0], masks[0, 1, 1] = 255, classes - 1
    return images, masks


def as_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette(mask):
    image = Image.fromarray(mask, "P")
    image.putpalette(np.random.RandomState(1).randint(256, size=768).astype(np.uint8).tobytes())
    return image


def write(path, images, masks, as_bytes=False, mode=Image.fromarray):
    content = {"image": [Image.fromarray(one) for one in images], "mask": [mode(one) for one in masks]}
    if as_bytes:
        content = {name: [as_png(one) for one in column] for name, column in content.items()}
    features = None if as_bytes else datasets.Features({name: datasets.Image() for name in content})
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(path))
    return path


def opened(path, **changes):
    return load(path, **({"input": "image", "target": "mask", "mean": 0.0, "std": 1 / 255} | changes))


@pytest.mark.parametrize(("as_bytes", "mode"), [(False, Image.fromarray), (True, Image.fromarray), (True, palette)])
def test_pixels_are_classes_and_255_is_none(tmp_path, as_bytes, mode):
    images, masks = arrays()
    data = opened(write(tmp_path / "m.parquet", images, masks, as_bytes, mode))
    assert (data.task, data.num_outputs, data.input_shape) == ("segmentation", 3, (1, 5, 6))
    assert "a segmentation of 3 classes" in data.notes[0]
    wanted = {images[i].tobytes(): np.where(masks[i] == 255, -100, masks[i].astype(int)) for i in range(len(images))}
    seen = 0
    for split in data.splits().values():
        for image, target in zip(*every(split), strict=True):
            assert np.array_equal(target.numpy(), wanted.pop(image[0].numpy().astype(np.uint8).tobytes()))
            seen += 1
    assert seen == 20 and not wanted, "each image once, with its own mask"
    assert opened(tmp_path / "m.parquet", task="segmentation", classes=7).num_outputs == 7


def test_a_mask_is_cropped_and_scaled_like_its_image_without_mixing_classes(tmp_path):
    """A mask in whose place stands its image: what was seen of one must be seen of the other."""
    corner = np.kron(np.arange(16).reshape(4, 4), np.ones((4, 4), int)).astype(np.uint8)  # tiles of 4 x 4 pixels
    wide = np.concatenate([np.full((16, 8), 20, np.uint8), corner, np.full((16, 8), 21, np.uint8)], 1)
    data = opened(write(tmp_path / "m.parquet", [wide] * 9, [wide] * 9), image_size=4)
    inputs, targets = every(data.train)
    assert torch.equal(targets[0].long(), torch.arange(16).view(4, 4))
    assert torch.allclose(inputs[0, 0], torch.arange(16.0).view(4, 4), atol=3)  # bilinear: near its tile


def test_the_loss_leaves_out_255(tmp_path):
    images, masks = arrays(n=30)
    write(tmp_path / "m.parquet", images, masks)
    data = opened(tmp_path / "m.parquet")
    from launcher.tasks.build import build_task

    _, task = build_task(None, data, {"_target_": "torch.nn.CrossEntropyLoss"})
    _, targets = every(data.train)
    scores = torch.randn(len(targets), 3, 5, 6, generator=torch.Generator().manual_seed(0))
    values, weights, _ = task.losses(lambda inputs: inputs, scores, targets)
    classes = torch.where(targets < 0, 255, targets.long())
    expected = torch.nn.functional.cross_entropy(scores, classes, ignore_index=255)
    torch.testing.assert_close(values.sum() / weights.sum(), expected)


def other(masks, index, value):
    masks = list(masks)
    masks[index] = value
    return masks


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (lambda m: [np.stack([one] * 3, -1) for one in m], {}, r"data\.target: a mask has the mode RGB"),
        (lambda m: m // 255 * 255, {}, r"no class above 0 but 255.*save the masks with 1 in its place"),
        (lambda m: m, {"classes": 0}, r"data\.classes: 0 is no number of classes"),
        (lambda m: m, {"target": "image", "input": "image"}, r"both name 'image'"),
        (lambda m: m, {"task": "classification"}, r"data\.target: column 'mask' holds .*Image.* no classes"),
    ],
    ids=["colours", "one class", "no classes", "the image itself", "classification"],
)
def test_what_is_wrong_is_a_sentence(tmp_path, change, settings, said):
    images, masks = arrays()
    write(tmp_path / "m.parquet", images, change(masks))
    with pytest.raises(ConfigError, match=said):
        opened(tmp_path / "m.parquet", **settings)


def test_masks_of_other_sizes_and_classes_are_named_when_they_are_read(tmp_path):
    images, masks = arrays()
    write(tmp_path / "m.parquet", images, [one[:, 1:] for one in masks])
    with pytest.raises(BrokenFile, match=r"a mask has 5 x 5 pixels, and its image 6 x 5"):
        every(opened(tmp_path / "m.parquet").train)
    write(tmp_path / "c.parquet", images, masks)
    with pytest.raises(BrokenFile, match=r"a mask has the class 2, and there are 0\.\.1"):
        every(opened(tmp_path / "c.parquet", classes=2).train)
    with pytest.raises(BrokenFile, match="a row has no mask"):
        classes_of(None)


def test_other_columns_are_no_masks(tmp_path):
    content = {"x": [float(i) for i in range(30)], "y": [i % 3 for i in range(30)]}
    datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(
        ConfigError, match=r"data\.target: column 'y' holds .* data\.task=segmentation takes one column"
    ):
        load(tmp_path / "t.parquet", input="x", target="y", task="segmentation")
    with pytest.raises(ConfigError, match=r"data\.classes=4: y holds no masks.*Set it to null"):
        load(tmp_path / "t.parquet", input="x", target="y", classes=4)
    _, masks = arrays(n=30)
    pictures = {"x": content["x"], "mask": [Image.fromarray(one) for one in masks]}
    features = datasets.Features({"x": datasets.Value("float64"), "mask": datasets.Image()})
    datasets.Dataset.from_dict(pictures, features=features).to_parquet(str(tmp_path / "n.parquet"))
    with pytest.raises(ConfigError, match=r"data\.input: 'x' holds no images, which the masks in 'mask' belong to"):
        load(tmp_path / "n.parquet", input="x", target="mask")


@pytest.mark.soak
def test_it_trains_on_one_rank_and_on_two(tmp_path):
    images, masks = arrays(n=40, height=8, width=8)
    images = np.where(masks == 255, 0, masks * 60 + images // 8).astype(np.uint8)
    write(tmp_path / "m.parquet", images, masks)
    words = [
        "data=huggingface", "data.path=m.parquet", "data.input=image", "data.target=mask", "model=unet",
        "model.channels=[4,8]", "optimizer=adamw", "optimizer.lr=0.03", "batch.global_size=8", "epochs=3",
        "log_every=1", "threads=1", "num_workers=0",
    ]  # fmt: skip
    for world in (1, 2):
        train([*words, f"hydra.run.dir=run{world}"], tmp_path, world, name=f"io{world}").ok()
    one, two = rows(tmp_path / "run1"), rows(tmp_path / "run2")
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert one[-1]["train/loss"] < one[0]["train/loss"] and one[-1]["eval/mean_iou"] > 0
