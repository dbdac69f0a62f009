import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from launcher.batching.keys import derive
from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, in_order, permute, uniforms
from launcher.data import DatasetSplit, TensorSplit

CPU = torch.device("cpu")


def tensors(n, **more):
    numbers = torch.arange(n)
    return TensorSplit(inputs=numbers[:, None].float(), targets=numbers, **more)


class Numbers(Dataset):
    """Gives each sample its number and a draw from every generator that an augmentation may use."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        import random

        return torch.tensor([float(i), torch.rand(()).item(), random.random(), np.random.rand()]), torch.tensor(i)


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


def test_uniforms_are_uniform_and_belong_to_the_sample():
    draws = uniforms(np.arange(20000), 3, derive(1))
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01 and np.abs(draws.var(0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert (uniforms(np.array([17]), 3, derive(1)) == draws[17]).all()


@pytest.mark.parametrize("cap", [None, 3])
@pytest.mark.parametrize("kind", [tensors, lambda n: DatasetSplit(Numbers(n))])
def test_the_global_batches_are_the_same_on_any_number_of_ranks(kind, cap):
    part = kind(97)

    def numbers(world, first, last):
        plan = plan_batch(97, 10, world, cap)
        streams = [Stream(part, plan, 5, rank, CPU, 0).batches(first, last) for rank in range(world)]
        batches = []
        for together in zip(*streams, strict=True):
            assert len({(b.step, b.size) for b in together}) == 1
            batches.append([t for b in together for m in b.micros for t in m.targets[: m.size].tolist()])
        return batches

    alone = numbers(1, 0, 25)
    assert [sorted(sum(alone[e * 10 : e * 10 + 10], [])) for e in (0, 1)] == [list(range(97))] * 2
    assert alone[:10] != alone[10:20], "each epoch has an order of its own"
    for world in (2, 3, 8):
        assert numbers(world, 0, 25) == alone
    assert numbers(3, 13, 25) == alone[13:], "to continue is to ask for a later step"
    plan = plan_batch(97, 10, 1, cap)
    assert Stream(part, plan, 5, 0, CPU, 0).samples(13).tolist() == alone[13]
    assert Stream(part, plan, 6, 0, CPU, 0).samples(13).tolist() != alone[13]


def test_augmentation_belongs_to_the_sample_whatever_the_ranks_and_workers():
    seen = {}
    for world, workers in ((1, 0), (2, 0), (3, 0), (1, 2)):
        plan = plan_batch(20, 6, world, 2)
        for rank in range(world):
            for batch in Stream(DatasetSplit(Numbers(20)), plan, 5, rank, CPU, workers).batches(0, 8):
                for micro in batch.micros:
                    for row in micro.inputs[: micro.size].tolist():
                        seen.setdefault((batch.step // plan.steps_per_epoch, row[0]), set()).add(tuple(row))
    assert len(seen) == 40 and all(len(values) == 1 for values in seen.values())
    assert seen[0, 3.0] != seen[1, 3.0], "each epoch draws anew"


def test_augmentation_in_memory_gets_the_samples_own_numbers():
    def note(raw, uniforms):
        return torch.cat([raw, uniforms], 1)

    seen = {}
    for world in (1, 3):
        plan = plan_batch(20, 6, world, None)
        for rank in range(world):
            part = tensors(20, augment=note, draws=2)
            for batch in Stream(part, plan, 5, rank, CPU, 0).batches(0, 4):
                for micro in batch.micros:
                    for row in micro.inputs[: micro.size].tolist():
                        seen.setdefault(row[0], set()).add(tuple(row))
    assert len(seen) == 20 and all(len(values) == 1 for values in seen.values())
    assert len({next(iter(v))[1:] for v in seen.values()}) == 20


@pytest.mark.parametrize("part", [tensors(97), DatasetSplit(Numbers(97))])
@pytest.mark.parametrize("world", [1, 2, 3, 120])
def test_evaluation_reads_every_sample_once_in_order(part, world):
    got = [t for rank in range(world) for _, ts in in_order(part, rank, world, 10, CPU, 0) for t in ts.tolist()]
    assert got == list(range(97))


class Batched(Dataset):
    """Gives whole batches, and counts in each sample how many it was asked for."""

    def __len__(self):
        return 20

    def __getitems__(self, numbers):
        return [(torch.tensor([number, len(numbers)], dtype=torch.uint8), torch.tensor(number)) for number in numbers]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_gives_batches_is_asked_for_batches_and_they_are_prepared_at_once(workers):
    shapes = []

    def prepare(raw):
        shapes.append(tuple(raw.shape))
        return raw.float() / 2

    part = DatasetSplit(Batched(), prepare=prepare, batched=True)
    (batch,) = Stream(part, plan_batch(20, 6, 2, None), 5, 1, CPU, workers).batches(4, 5)
    (reference,) = Stream(tensors(20), plan_batch(20, 6, 2, None), 5, 1, CPU, 0).batches(4, 5)
    assert batch.micros[0].targets.tolist() == reference.micros[0].targets.tolist()
    wanted = [[number / 2, 1.5] for number in batch.micros[0].targets.tolist()]
    assert batch.micros[0].inputs.tolist() == wanted and shapes == [(3, 2)]
    assert [x.tolist() for x, _ in in_order(part, 1, 2, 6, CPU, workers)][1] == [[i / 2, 2] for i in range(16, 20)]
