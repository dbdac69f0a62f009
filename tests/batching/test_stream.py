import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, in_order
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


def test_augmentation_belongs_to_the_sample_on_any_ranks_and_workers():
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
def test_batches_of_a_dataset_are_asked_for_and_prepared_at_once(workers):
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
