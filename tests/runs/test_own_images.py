"""A run on images of a person."""

import pytest
from omegaconf import OmegaConf
from processes import command, train
from safetensors.torch import save_file
from vision_options import SMALL, folder, theirs

pytestmark = pytest.mark.versions


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
