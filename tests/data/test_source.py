"""Data sources: compared with scikit-learn's and torchvision's own readers, and with plain loops."""

import pytest
import torch
from data_sources import CONF, load, parts

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


class Open(torch.nn.Linear):
    """A constructor that names facts and takes anything else as well."""

    def __init__(self, in_features, num_classes, width=8, **others):
        super().__init__(in_features, num_classes)


def test_facts_reach_what_names_them_whatever_else_it_takes():
    model = build("model", {"_target_": f"{__name__}.Open", "depth": 3}, in_features=4, num_classes=2, in_channels=1)
    assert model.weight.shape == (2, 4)


@pytest.mark.parametrize("targets", [[1, 2, 3], [-1, 0, 1], [[0.0, 1.0]] * 3, [0.0, 1.0, 2.0]])
def test_targets_that_are_no_classes_are_refused_in_a_sentence(targets):
    part = TensorSplit(torch.zeros(3, 2), torch.tensor(targets))
    with pytest.raises(ConfigError, match="none of its 3 classes: give int64 labels"):
        Data("own", "classification", (2,), 3, part, part, part).class_counts  # noqa: B018


def test_lengths_and_outputs_that_do_not_fit_are_refused():
    samples = [(torch.zeros(2), i % 2) for i in range(6)]
    right = DatasetSplit(samples, lengths=torch.ones(6))
    Data("own", "classification", (2,), 2, right, right, right).check()
    with pytest.raises(ConfigError, match="list has 6 samples, and the lengths of its split are those of 5"):
        DatasetSplit(samples, lengths=torch.ones(5))
    with pytest.raises(ConfigError, match="its num_outputs is 0"):
        Data("own", "classification", (2,), 0, right, right, right).check()


@pytest.mark.parametrize("name", NAMES)
def test_first_line_of_each_option_says_how_to_pick_it(name):
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and f": data={name}" in first


@pytest.mark.parametrize("read", [False, True])
def test_a_limited_split_has_its_share_of_each_class(read):
    """Its samples are those of the whole, each with its own target, and their plain version as well."""
    targets = torch.arange(100) % 5
    part = TensorSplit(torch.arange(100.0)[:, None], targets)
    if read:
        pairs = list(zip(part.inputs, targets.tolist(), strict=True))
        part = DatasetSplit(pairs, targets, plain=pairs)
    data = Data("made", "classification", (1,), 5, part, part.at(torch.arange(8)), part)
    data.limit(20)
    assert [len(one) for one in parts(data)] == [20, 8, 20]
    assert data.class_counts.tolist() == [4] * 5
    if read:
        samples = [data.train.dataset[i] for i in range(20)]
        assert [data.train.plain[i] for i in range(20)] == samples
    else:
        samples = zip(data.train.inputs, data.train.targets.tolist(), strict=True)
    assert [int(x) % 5 for x, _ in samples] == data.train.targets.tolist()


def test_facts_are_what_constructors_ask_for():
    assert load("digits").facts() == {
        "input_shape": (1, 8, 8),
        "in_features": 64,
        "in_channels": 1,
        "num_outputs": 10,
        "out_features": 10,
        "num_classes": 10,
    }
    assert load("diabetes").facts() == {
        "input_shape": (10,),
        "in_features": 10,
        "num_outputs": 1,
        "out_features": 1,
    }


def test_the_log_gets_one_line_of_sizes_and_no_tensors():
    assert str(load("digits")) == "digits: classification, 1x8x8 to 10; 1294 to train, 144 to validate, 359 to test"


def test_a_part_that_does_not_tell_its_labels_has_no_counts():
    part = DatasetSplit(list(range(3)))
    data = Data("own", "classification", (1,), 2, part, part, part)
    assert len(part) == 3
    with pytest.raises(ConfigError, match="data=own does not tell its labels"):
        _ = data.class_counts
    tensors = TensorSplit(torch.zeros(4, 1), torch.tensor([0, 0, 1, 0]))
    data = Data("own", "classification", (1,), 3, tensors, part, part)
    assert data.class_counts.tolist() == [3, 1, 0]


@pytest.mark.gpu
def test_data_moves_to_the_gpu_and_gives_the_same_batches(monkeypatch):
    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import of_rank
    from launcher.data import Data, TensorSplit
    from launcher.distributed.ranks import find_ranks

    def made():
        part = TensorSplit(torch.arange(4000, dtype=torch.uint8).view(1000, 4), torch.arange(1000) % 3,
                          prepare=torch.Tensor.float)  # fmt: skip
        return Data("made", "classification", (4,), 3, part, part, part)

    device = torch.device("cuda")
    plan = plan_batch(1000, 16, 1, None, None)
    there, here = made(), made()
    there.move_to(device)
    assert there.train.inputs.device.type == "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    here.move_to(device)
    assert here.train.inputs.device.type == "cpu", "too large for a quarter of what is free"
    batches = [list(of_rank(data.train, plan, 0, find_ranks({}), device, 0).batches(0, 80)) for data in (there, here)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.micros[0].inputs, other.micros[0].inputs)
        assert torch.equal(one.micros[0].targets, other.micros[0].targets)
