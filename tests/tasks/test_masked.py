"""task=masked: what is hidden, what it costs, and what it leaves behind."""

import pytest
import torch
from made_tasks import small
from processes import rows, train
from safetensors.torch import load_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.tasks.masked import MaskedReconstruction

RUN = [
    "data._target_=made_tasks.small", "task=masked", "task.share=0.4", "optimizer=adam", "optimizer.lr=0.03",
    "scheduler=constant", "model=mlp", "model.hidden=[16]", "batch.global_size=12", "log_every=1", "eval_every=4",
    "wandb.mode=disabled", "seed=3", "threads=1", "hydra.run.dir=run",
]  # fmt: skip


class Twice(nn.Module):
    """Twice what it sees, which it keeps."""

    def forward(self, x):
        self.seen = x
        return 2 * x + 1


def test_the_loss_is_the_error_of_what_was_hidden_alone():
    torch.manual_seed(0)
    task, model, x = MaskedReconstruction(0.3, (2, 50)), Twice(), torch.rand(20, 2, 50) + 1
    assert task.model_facts["num_outputs"] == 100
    values = task.losses(model, x, None).values
    hidden = model.seen == 0
    assert hidden.double().mean().item() == pytest.approx(0.3, abs=0.03) and (hidden != hidden[0]).any()
    expected = [(1 - x[i][hidden[i]]).square().mean() for i in range(20)]  # of a hidden number it says 1
    torch.testing.assert_close(values, torch.stack(expected))
    torch.testing.assert_close(model.seen[~hidden], x[~hidden])
    task.eval()
    task.losses(model, x, None)
    fixed = model.seen == 0
    assert (fixed == fixed[0]).all() and fixed[0].sum() == 30
    with pytest.raises(ConfigError, match=r"task\.share is 1: must lie between 0 and 1"):
        MaskedReconstruction(1, (4,))


def test_an_evaluation_is_the_same_on_any_number_of_ranks_and_training_goes_on_bitwise(tmp_path):
    found = {}
    for name, world, stops in (("whole", 1, [8]), ("parts", 1, [3, 8]), ("two", 2, [8])):
        (tmp_path / name).mkdir()
        for stop in stops:
            words = [*RUN, "epochs=2", f"max_steps={stop}", "ema_decay=0.9"]
            train(words, tmp_path / name, world, name=f"io{stop}").ok()
        found[name] = rows(tmp_path / name / "run")
    assert found["whole"] == found["parts"]
    weights = load_file(tmp_path / "two/run/checkpoints/step_00000008/model.safetensors")
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    model.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in weights.items()})
    task = MaskedReconstruction(0.4, (6,)).eval()
    values = task.losses(model, small().validation.inputs, None).values
    rowed = [row for row in found["two"] if "eval/loss" in row]
    assert rowed[-1]["eval/loss"] == pytest.approx(values.mean().item(), rel=1e-5)


def test_a_model_begins_with_what_was_learned_without_labels(tmp_path):
    train([*RUN, "epochs=3"], tmp_path).ok()
    words = [word for word in RUN if not word.startswith(("task", "hydra"))]
    train([*words, "init_from=run", "hydra.run.dir=tuned", "epochs=1"], tmp_path, name="io2").ok()
    assert (tmp_path / "tuned/summary.json").exists()
    log = (tmp_path / "tuned/train.log").read_text()
    assert "weights    2 tensors from run/checkpoints/step_" in log, log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.share=0"], "task.share is 0: must lie between 0 and 1"),
        (["loss=mse"], "has a loss of its own. Leave the group loss out"),
        (["metrics=[AUROC]"], "metrics: the task MaskedReconstruction has no outputs that metrics could"),
        (["test_time_flip=true"], "test_time_flip"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words, message, tmp_path):
    done = train([*RUN, *words], tmp_path).wait()
    assert done.status == [2] and message in done.err() and "Traceback" not in done.err(), done.err()
