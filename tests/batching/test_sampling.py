"""Orders of samples, in which every sample or every class comes equally often, on any number of ranks from any step."""

import itertools

import numpy as np
import pytest
import torch
from kill_loop import OWN, place
from processes import rows, train
from torch.utils.data import Dataset

from launcher.batching.keys import derive
from launcher.batching.plan import plan_batch
from launcher.batching.sampling import Balanced, EpochPermutation, GroupedByLength, permute
from launcher.batching.stream import Stream
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit

CPU = torch.device("cpu")


def data(*counts, kind="tensors", **more):
    """A training split with so many samples of each class, mixed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    inputs = torch.arange(len(labels))[:, None].float()
    part = TensorSplit(inputs, labels, **more) if kind == "tensors" else DatasetSplit(Numbers(labels), labels)
    return Data("made", "classification", (1,), len(counts), part, part, part)


class Numbers(Dataset):
    """Gives each sample its number, a draw of its augmentation, and its label."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.tensor([float(i), torch.rand(()).item()]), self.labels[i]


@pytest.mark.parametrize("counts", [(90, 10), (40, 7, 50), (5, 0, 90, 3), (1, 99), (25, 25, 25, 25)])
def test_each_epoch_has_classes_and_samples_equally_often(counts):
    made = data(*counts)
    n, labels = len(made.train), made.train.targets.numpy()
    balanced, present = Balanced(made, 3), np.flatnonzero(counts)
    orders, extra = [], np.zeros(len(counts))
    for epoch in range(40):
        draws = balanced.samples_at(epoch, np.arange(n))
        samples = draws % n
        of_class = np.bincount(labels[samples], minlength=len(counts))
        assert set(of_class[present]) <= {n // len(present), -(-n // len(present))} and of_class.sum() == n
        assert len(set(draws.tolist())) == n, "a sample that comes again is told apart"
        extra += of_class - n // len(present)
        for c in present:
            times = np.bincount(samples, minlength=n)[labels == c]
            # Two cycles may be cut by an epoch: what is whole in between comes to all alike.
            assert times.max() - times.min() <= 2
        orders.append(tuple(samples.tolist()))
    assert len(set(orders)) == 40
    rest = n % len(present)
    if rest:  # who gets one more is drawn: 40 epochs, each with probability rest / k
        share = rest / len(present)
        assert np.abs(extra[present] - 40 * share).max() < 5 * np.sqrt(40 * share * (1 - share)) + 1e-9


def test_over_epochs_a_large_class_is_gone_through_evenly():
    """90 samples of one class and 10 of the other: 50 draws of each in each of 9 epochs are 5 and 45 times."""
    made = data(90, 10)
    balanced = Balanced(made, 0)
    samples = np.concatenate([balanced.samples_at(epoch, np.arange(100)) % 100 for epoch in range(9)])
    times = np.bincount(samples, minlength=100)
    labels = made.train.targets.numpy()
    assert set(times[labels == 0]) == {5} and set(times[labels == 1]) == {45}


def test_draws_are_as_random_as_a_weighted_sampler():
    """Classes of neighbours, and places of samples, against the expectation of independence; two seeds differ."""
    made, labels = data(300, 60, 40), None
    labels = made.train.targets.numpy()
    pairs, places = np.zeros((3, 3)), np.zeros(400)
    for seed in range(60):
        order = Balanced(made, seed).samples_at(0, np.arange(400)) % 400
        classes = labels[order]
        np.add.at(pairs, (classes[:-1], classes[1:]), 1)
        places += np.isin(order, np.flatnonzero(labels == 1)[:30])  # half of the middle class: a sixth of the draws
    expected = pairs.sum() / 9
    assert ((pairs - expected) ** 2 / expected).sum() < 30  # 4 to 8 degrees of freedom: 99.99 % is 32 at most
    quarters = places.reshape(4, 100).sum(1)
    assert np.abs(quarters - 60 * 400 / 6 / 4).max() < 6 * np.sqrt(60 * 400 / 6 / 4)


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_global_batches_are_the_same_on_any_ranks_from_any_step(kind):
    made = data(30, 6, 61, kind=kind)

    def batches(world, first, last):
        plan = plan_batch(97, 10, world, 3)
        streams = [
            Stream(made.train, plan, 5, rank, CPU, 0, sampler=Balanced(made, 5)).batches(first, last)
            for rank in range(world)
        ]
        return [
            [tuple(row) for b in together for m in b.micros for row in m.inputs[: m.size].tolist()]
            for together in zip(*streams, strict=True)
        ]

    alone = batches(1, 0, 25)
    for world in (2, 3, 8):
        assert batches(world, 0, 25) == alone
    assert batches(3, 13, 25) == alone[13:]
    stream = Stream(made.train, plan_batch(97, 10, 1, None), 5, 0, CPU, 0, sampler=Balanced(made, 5))
    assert [stream.samples(step).tolist() for step in (0, 13)] == [[r[0] for r in alone[step]] for step in (0, 13)]
    if kind == "dataset":  # what comes again in an epoch is augmented in another way
        rows = [row for batch in alone[:10] for row in batch]
        assert len({row[0] for row in rows}) < 90 and len(set(rows)) == 97


def test_repeats_in_memory_are_augmented_anew_and_alike_everywhere():
    def note(raw, uniforms):
        return torch.cat([raw, uniforms], 1)

    made = data(90, 10, augment=note, draws=1)
    seen = {}
    for world in (1, 3):
        plan = plan_batch(100, 12, world, None)
        seen[world] = sorted(
            tuple(row)
            for rank in range(world)
            for batch in Stream(made.train, plan, 5, rank, CPU, 0, sampler=Balanced(made, 5)).batches(0, 9)
            for micro in batch.micros
            for row in micro.inputs[: micro.size].tolist()
        )
    assert seen[1] == seen[3] and len(set(seen[1])) == 100 and len({row[0] for row in seen[1]}) <= 60


def test_data_that_cannot_be_balanced():
    made = data(5, 5)
    made.task = "regression"
    with pytest.raises(ConfigError, match="sampling=balanced: data=made is a regression task"):
        Balanced(made, 0)
    made = data(5, 5, kind="dataset")
    made.train.targets = None
    with pytest.raises(ConfigError, match=r"sampling=balanced: .* one label per sample. Use sampling=shuffle"):
        Balanced(made, 0)


@pytest.mark.soak
def test_a_run_has_the_same_losses_on_any_number_of_ranks(tmp_path):
    words = ["data._target_=own.load", "+data.n=61", "+data.classes=4", "batch.global_size=13", "epochs=3", "threads=1",
             "log_every=2", "sampling=balanced", "model.hidden=[8]", "hydra.run.dir=run"]  # fmt: skip
    found = {}
    for world in (1, 2, 3):
        train(words, place(tmp_path / str(world), OWN), world).ok()
        found[world] = rows(tmp_path / str(world) / "run")
    train([*words[:7], *words[8:]], place(tmp_path / "shuffled", OWN)).ok()
    assert rows(tmp_path / "shuffled/run") != found[1]
    for world in (2, 3):
        for row, expected in zip(found[world], found[1], strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 97, 1000, 4097])
def test_permutation_is_a_bijection_and_depends_on_the_key(n):
    one, other = (permute(np.arange(n), n, derive(key)) for key in (1, 2))
    assert sorted(one.tolist()) == list(range(n))
    if n > 10:
        assert one.tolist() != other.tolist()


def test_any_position_is_found_alone_and_far_away():
    whole = permute(np.arange(1000), 1000, 7)
    assert [permute(np.array([i]), 1000, 7)[0] for i in (0, 999, 500)] == whole[[0, 999, 500]].tolist()
    far = permute(np.array([10**15, 10**15 + 1]), 2 * 10**15, 7)
    assert len(set(far.tolist())) == 2 and (far < 2 * 10**15).all()


def test_permutations_are_uniform():
    """Each of 24 orders of 4 samples, and each place of a sample among 10, comes up as often as by chance."""
    orders, places = {}, np.zeros((10, 10))
    for key in range(4800):
        order = tuple(permute(np.arange(4), 4, derive(3, key)).tolist())
        orders[order] = orders.get(order, 0) + 1
        places[np.arange(10), permute(np.arange(10), 10, derive(4, key))] += 1
    chi_orders = sum((count - 200) ** 2 / 200 for count in orders.values())
    chi_places = ((places - 480) ** 2 / 480).sum()
    assert len(orders) == 24
    assert chi_orders < 60  # 23 degrees of freedom: 99.99 % is 56
    assert chi_places < 145  # 81 degrees of freedom: 99.99 % is 138


def test_permutations_at_once_are_those_of_each_alone():
    generator = np.random.RandomState(0)
    for size in (1, 2, 3, 7, 64, 1000):
        keys = generator.randint(0, 2**62, 5).astype(np.uint64)
        positions = np.arange(size).repeat(5)
        found = permute(positions, np.full(5 * size, size), np.tile(keys, size)).reshape(size, 5)
        for column, key in enumerate(keys.tolist()):
            assert found[:, column].tolist() == permute(np.arange(size), size, key).tolist()
    sizes = generator.randint(1, 3000, 500)
    positions, keys = generator.randint(0, 10**9, 500) % sizes, generator.randint(0, 2**62, 500).astype(np.uint64)
    mixed = permute(positions, sizes, keys)
    for i in range(500):
        assert mixed[i] == permute(positions[i : i + 1], int(sizes[i]), int(keys[i]))[0]


def test_each_epoch_has_an_order_of_its_own():
    first, second = (EpochPermutation(50, seed=1).samples_at(epoch, np.arange(50)).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [*range(50)] and first != second
    assert EpochPermutation(50, seed=1).samples_at(0, np.array([7])).tolist() == [first[7]]


class Lengths(Numbers):
    """Samples with a length of their own."""

    def __init__(self, lengths):
        super().__init__(torch.zeros(len(lengths), dtype=torch.int64))


@pytest.mark.parametrize(("n", "batch"), [(1000, 8), (401, 8), (37, 8), (5, 8), (800, 16), (8, 8)])
def test_samples_of_like_length_come_together(n, batch):
    """Each once an epoch; within 50 batches no batch has a length that another one's lie around."""
    lengths = torch.randint(1, 500, (n,), generator=torch.Generator().manual_seed(n))
    split = DatasetSplit(Lengths(lengths), lengths=lengths)
    grouped = GroupedByLength(Data("made", "regression", (1,), 1, split, split, split), 3, batch)
    orders = [grouped.samples_at(epoch, np.arange(n)) for epoch in range(3)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert n < 10 or len({tuple(order) for order in orders}) == 3
    together = 50 * batch
    for piece in range(0, n, together):
        here = lengths.numpy()[orders[1][piece : piece + together]]
        batches = sorted((here[at : at + batch] for at in range(0, len(here), batch)), key=lambda one: -one.max())
        assert all(longer.min() >= shorter.max() for longer, shorter in itertools.pairwise(batches))
        if len(here) >= 16 * batch:  # and the batches are not from the longest to the shortest
            assert (
                abs(np.corrcoef(here[: len(here) // batch * batch], np.arange(len(here) // batch * batch))[0, 1]) < 0.6
            )
    picked = np.array([n - 1, 0, n // 2, n // 3])
    assert grouped.samples_at(1, picked).tolist() == orders[1][picked].tolist(), "any position alone"


def test_lengths_must_be_known():
    with pytest.raises(ConfigError, match="data=made does not tell the lengths of its samples"):
        GroupedByLength(data(5, 5), 0, 4)
