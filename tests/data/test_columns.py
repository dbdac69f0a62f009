"""Columns of images and numbers."""

import numpy as np
import pytest
import torch
from datasets_on_disk import cache, datasets, load, pictures, prices  # noqa: F401
from processes import summary, train

from launcher.data.columns import Images

pytestmark = pytest.mark.versions


def test_grey_images_and_other_sizes():
    from PIL import ImageOps

    grey, wide = pictures(3, "L"), pictures(1, "L", side=(12, 5), seed=7)
    stay, fit = Images("L", (6, 5), False), Images("RGB", (4, 4), True)
    assert torch.equal(stay(grey), torch.from_numpy(np.stack([np.asarray(image) for image in grey]))[:, None])
    with pytest.raises(ValueError, match=r"12 x 5 pixels, and the first one 6 x 5; set data\.image_size"):
        stay([*grey, *wide])
    expected = [np.asarray(ImageOps.fit(image.convert("RGB"), (4, 4), 2)) for image in (*grey, *wide)]
    assert torch.equal(fit([*grey, *wide]), torch.from_numpy(np.stack(expected).transpose(0, 3, 1, 2)))
    with pytest.raises(ValueError, match="no image"):
        stay([None])


def test_numbers_near_a_million_millions_train_as_those_of_csv_do(tmp_path):
    content = prices()
    content["y"] = [(x - 10**12) / 10**5 + 0.1 * (i % 7) for i, x in enumerate(content["x"])]
    datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "t.parquet"))
    datasets.Dataset.from_dict({k: content[k] for k in ("x", "y")}).to_csv(str(tmp_path / "t.csv"))
    run = ["loss=mse", "epochs=2", "threads=1", "num_workers=0", "optimizer.lr=0.01"]
    words = ["data=huggingface", "data.path=t.parquet", "data.input=x", "data.target=y", "hydra.run.dir=hf"]
    train([*run, *words], tmp_path).ok()
    train([*run, "data=csv", "data.path=t.csv", "data.target=y", "hydra.run.dir=csv"], tmp_path, name="io1").ok()
    ours, theirs = (summary(tmp_path / name)["final"] for name in ("hf", "csv"))
    assert ours["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-4) and ours["test/r2"] > 0.9
    assert (
        "different values: a regression (data.task=classification takes each for a class)"
        in (tmp_path / "hf/train.log").read_text()
    )


def test_grey_and_coloured_images_in_any_order(tmp_path):
    """The channels were those of the first row for all."""
    for first, both in {"L": pictures(30, "L") + pictures(30), "RGB": pictures(30) + pictures(30, "L")}.items():
        content = {"image": both, "label": [i % 2 for i in range(60)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict(content, features=features).save_to_disk(str(tmp_path / first))
        data = load(tmp_path / first, input="image", target="label")
        assert data.input_shape == (3, 5, 6)
        assert load(tmp_path / first, input="image", target="label", channels=1).input_shape == (1, 5, 6)
    rare = Images("L", (6, 5), False, None, sure=False)
    with pytest.raises(
        ValueError, match=r"an image has colours, and those looked at first are grey; set data\.channels"
    ):
        rare(pictures(1))
    assert rare(pictures(2, "L")).shape == (2, 1, 5, 6)
