"""Groups of a person's own in whole runs: on more ranks, sharded, resumed, and changed in between."""

import pytest
import torch
from processes import rows, train
from safetensors.torch import load_file

GROUPS = "param_groups=[{match: 'layers.1.*', lr: 0.02}, {match: '*bias', weight_decay: 0.1}]"
RUN = ["data=iris", "model.hidden=[8,8]", "model.dropout=0", "batch.global_size=12", "optimizer=adamw", "threads=1",
       "log_every=1", "ema_decay=0.8", "scheduler=cosine", "epochs=3", GROUPS, "hydra.run.dir=run"]  # fmt: skip


def weights(directory):
    return load_file(max((directory / "run/checkpoints").glob("step_*")) / "model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    train(RUN, directory).ok()
    return directory


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(strategy, straight, tmp_path):
    train([*RUN, f"strategy={strategy}"], tmp_path, 2).ok()
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, weights(straight)[name], rtol=1e-4, atol=1e-5, msg=name)
    plain = tmp_path / "plain"
    plain.mkdir()
    train([word for word in RUN if word != GROUPS], plain).ok()
    assert any(not torch.allclose(weights(plain)[name], one, atol=1e-3) for name, one in weights(tmp_path).items())


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 1), ("fsdp", 2)])
def test_a_resumed_run_has_the_same_bits_and_other_groups_are_refused(strategy, world, tmp_path):
    words = [*RUN, f"strategy={strategy}"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train(words, tmp_path / "whole", world).ok()
    constant = [word for word in words if not word.startswith("epochs")]
    parts = tmp_path / "parts"
    train([*constant, "epochs=3", "checkpoint.every=5", "checkpoint.keep=9"], parts, world).ok()
    for path in sorted((parts / "run/checkpoints").glob("step_*"))[1:]:  # as if it had been killed after the first
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (parts / "run/summary.json").unlink()
    other = [word if word != GROUPS else GROUPS.replace("0.02", "0.03") for word in constant]
    refused = train([*other, "epochs=3", "checkpoint.every=5"], parts, world, name="io1").wait()
    assert set(refused.status) == {2} and "param_groups" in refused.err() and "0.03" in refused.err(), refused.err()
    train([*constant, "epochs=3", "checkpoint.every=5"], parts, world, name="io2").ok()
    assert "resume     from step_00000005" in (parts / "run/train.log").read_text()
    assert rows(parts / "run") == rows(tmp_path / "whole/run")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(parts)[name]), name
