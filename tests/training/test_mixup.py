"""Mixup and cutmix beside torchvision's own, a loop over samples, torch's soft targets, and other numbers of ranks."""

import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from kill_loop import RUN, STEPS, place, same_bits
from processes import rows, train
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import Dataset
from trainers import supervised

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, of_rank
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.distributed.ranks import Ranks, find_ranks
from launcher.losses.per_sample import PerSample
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised
from launcher.training.mixup import MixedStream, MixedTargets, Mixing, mixed

CPU = torch.device("cpu")
MIXUP, CUTMIX = Mixing(0.4, 0, 1, 0.5), Mixing(0, 1.0, 1, 0.5)
BOTH = Mixing(0.4, 1.0, 0.8, 0.5)
CROSS_ENTROPY = {"_target_": "torch.nn.CrossEntropyLoss"}
OFF = {"alpha": 0, "cutmix_alpha": 0, "prob": 1, "switch_prob": 0.5}


def pictures(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 6, 5, generator=generator), torch.arange(n) % 4


class Pictures(Dataset):
    def __init__(self, n):
        self.images, self.labels = pictures(n)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def data_of(part, shape=(3, 6, 5), task="classification"):
    return Data("made", task, shape, 4, part, part, part)


def soft(targets, size):
    """[size, 4] probabilities of a micro-batch's targets."""
    if not isinstance(targets, MixedTargets):
        return F.one_hot(targets[:size], 4).float()
    one, other = (F.one_hot(t[:size], 4).float() for t in (targets.targets, targets.neighbours))
    return targets.share * one + (1 - targets.share) * other


def delivered(part, mixing, world, cap, first, last, batch=10, shards=None):
    """The mixed global batches of some steps: (images, probabilities), put together from all ranks."""
    plan = plan_batch(len(part), batch, world, cap, shards)
    kind = partial(MixedStream, mixing)
    streams = [
        of_rank(part, plan, 5, Ranks(rank, world, rank, world), CPU, 0, kind=kind).batches(first, last)
        for rank in range(world)
    ]
    found = []
    for together in zip(*streams, strict=True):
        micros = [micro for one in together for micro in one.micros]
        images = torch.cat([micro.inputs[: micro.size] for micro in micros])
        found.append((images, torch.cat([soft(micro.targets, micro.size) for micro in micros])))
        assert len(images) == together[0].size
    return found


def loop(mixing, step, batch=10, n=37):
    """A global batch mixed sample by sample, as the paper writes it."""
    images, labels = pictures(n)
    numbers = Stream(TensorSplit(images, labels), plan_batch(n, batch, 1, None), 5, 0, CPU, 0).samples(step)
    share, box = mixing.draw(5, step, 6, 5)
    mixed_images, probabilities = [], []
    for p in range(len(numbers)):
        q = p + 1 if p % 2 == 0 else p - 1
        q = p if q == len(numbers) else q
        one, other = images[numbers[p]], images[numbers[q]]
        if box is None:
            image = share * one + (1 - share) * other
        else:
            image = one.clone()
            for y in range(6):
                for x in range(5):
                    if box[0].start <= y < box[0].stop and box[1].start <= x < box[1].stop:
                        image[:, y, x] = other[:, y, x]
        mixed_images.append(image)
        target = torch.zeros(4)
        target[labels[numbers[p]]] += share
        target[labels[numbers[q]]] += 1 - share
        probabilities.append(target)
    return torch.stack(mixed_images), torch.stack(probabilities)


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("kind", [lambda n: TensorSplit(*pictures(n)), lambda n: DatasetSplit(Pictures(n))])
@pytest.mark.parametrize(("world", "cap"), [(1, None), (1, 3), (2, None), (3, 2), (4, 1), (10, None)])
def test_every_cut_of_the_global_batch_gives_the_loop_over_samples(mixing, kind, world, cap):
    """37 samples by 10: the last batch is odd, and has fewer samples than ten ranks."""
    for step, (images, probabilities) in enumerate(delivered(kind(37), mixing, world, cap, 0, 8)):
        expected = loop(mixing, step)
        torch.testing.assert_close(images, expected[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(probabilities, expected[1])
    later = delivered(kind(37), mixing, world, cap, 5, 8)
    again = delivered(kind(37), mixing, world, cap, 0, 8)[5:]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(later, again, strict=True)), "resumed at step 5"


def test_canonical_shards_have_the_same_bits_on_any_number_of_ranks():
    part = TensorSplit(*pictures(37))
    alone = delivered(part, BOTH, 1, None, 0, 8, shards=4)
    for world in (2, 4):
        for one, other in zip(alone, delivered(part, BOTH, world, None, 0, 8, shards=4), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_of_two_samples_it_is_torchvisions_mixup_and_cutmix():
    """torchvision mixes with the sample before: of two samples that is the neighbour."""
    transforms = pytest.importorskip("torchvision.transforms.v2")
    images, labels = pictures(2)
    part = TensorSplit(images, labels)
    theirs = {MIXUP: transforms.MixUp(alpha=1.0, num_classes=4), CUTMIX: transforms.CutMix(alpha=1.0, num_classes=4)}
    for mixing, transform in theirs.items():
        for step in range(6):
            numbers = Stream(part, plan_batch(2, 2, 1, None), 5, 0, CPU, 0).samples(step)
            ours = delivered(part, mixing, 1, None, step, step + 1, batch=2)[0]
            share, box = mixing.draw(5, step, 6, 5)
            parameters = {"labels": labels[numbers], "batch_size": 2}
            if box is None:
                parameters["lam"] = share
            else:
                rows, columns = box
                parameters |= {"box": (columns.start, rows.start, columns.stop, rows.stop), "lam_adjusted": share}
            torch.testing.assert_close(ours[0], transform.transform(images[numbers], parameters))
            torch.testing.assert_close(ours[1], transform.transform(parameters["labels"], parameters))


def test_shares_and_boxes_have_their_distribution():
    """Beta for mixup; for cutmix torchvision's own draws; both, and neither, as often as asked for."""
    stats = pytest.importorskip("scipy.stats")
    transforms = pytest.importorskip("torchvision.transforms.v2")
    shares = [MIXUP.draw(1, step, 32, 32)[0] for step in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    ours = [CUTMIX.draw(1, step, 32, 24)[0] for step in range(2000)]
    torch.manual_seed(0)
    library, blank = transforms.CutMix(alpha=1.0, num_classes=2), [torch.zeros(2, 3, 32, 24)]
    theirs = [library.make_params(blank)["lam_adjusted"] for _ in range(2000)]
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    draws = [BOTH.draw(1, step, 32, 32) for step in range(2000)]
    cut = sum(box is not None for _, box in draws)
    plain = sum(share == 1 and box is None for share, box in draws)
    assert abs(cut - 800) < 90 and abs(plain - 400) < 80
    assert BOTH.draw(1, 7, 32, 32) == BOTH.draw(1, 7, 32, 32) != BOTH.draw(2, 7, 32, 32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_soft_targets(smoothing):
    data = data_of(TensorSplit(*pictures(8)))
    settings = {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": smoothing, "weight": None}
    mixed(OFF | {"alpha": 0.4}, data, task := supervised(data, settings))
    loss = task.loss
    outputs = torch.randn(8, 4, requires_grad=True)
    targets = MixedTargets(torch.arange(8) % 4, torch.arange(8) // 2, 0.3)
    values, weights = loss(outputs, targets)
    expected = F.cross_entropy(outputs, soft(targets, 8), label_smoothing=smoothing)
    assert weights is None
    torch.testing.assert_close(values.mean(), expected)
    one, other = (torch.autograd.grad(x, outputs)[0] for x in (values.mean(), expected))
    torch.testing.assert_close(one, other)
    plain, _ = loss(outputs, targets.targets)
    torch.testing.assert_close(plain.mean(), F.cross_entropy(outputs, targets.targets, label_smoothing=smoothing))


def test_class_weights_are_mixed_alike():
    data = data_of(TensorSplit(*pictures(8)))
    class_weights = [1.0, 2.0, 3.0, 4.0]
    settings = {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.0, "weight": class_weights}
    mixed(OFF | {"cutmix_alpha": 1}, data, task := supervised(data, settings))
    loss = task.loss
    outputs, targets = torch.randn(8, 4), MixedTargets(torch.arange(8) % 4, torch.arange(8) // 2, 0.3)
    values, weights = loss(outputs, targets)
    per_class = -outputs.log_softmax(1) * torch.tensor(class_weights)
    torch.testing.assert_close(values, (per_class * soft(targets, 8)).sum(1))
    torch.testing.assert_close(weights, soft(targets, 8) @ torch.tensor(class_weights))


def test_off_it_is_the_stream_and_the_loss_of_any_run():
    data = data_of(TensorSplit(*pictures(8)))
    task = supervised(data, CROSS_ENTROPY)
    loss = task.loss
    assert mixed(OFF, data, task) == Stream and task.loss is loss


@pytest.mark.parametrize(
    ("changes", "shape", "task", "whole", "message"),
    [
        ({"alpha": 0.2}, (3, 6, 5), "regression", False, r"mixup\.alpha: data=made is a regression task"),
        ({"cutmix_alpha": 1}, (3, 6, 5), "regression", False, r"mixup\.cutmix_alpha: data=made is a regression"),
        ({"cutmix_alpha": 1}, (90,), "classification", False, r"mixup\.cutmix_alpha: .*no images"),
        ({"alpha": 0.2}, (3, 6, 5), "classification", True, r"mixup\.alpha: .*whole numbers"),
    ],
)
def test_refuses_what_cannot_be_mixed(changes, shape, task, whole, message):
    images, labels = pictures(8)
    part = TensorSplit(images.long() if whole else images, labels)
    with pytest.raises(ConfigError, match=message):
        data = data_of(part, shape, task)
        mixed(OFF | changes, data, Supervised(PerSample(torch.nn.CrossEntropyLoss()), Outputs.of(data, CROSS_ENTROPY)))


class Described(Pictures):
    """Images with something beside them, or as whole numbers."""

    def __init__(self, n, whole):
        super().__init__(n)
        self.whole = whole

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image.long() if self.whole else {"image": image, "age": torch.rand(1)}, label


@pytest.mark.parametrize(("whole", "message"), [(False, "data=made gives inputs in a dict"), (True, "whole numbers")])
def test_refuses_a_dataset_whose_inputs_are_no_tensor_of_numbers(whole, message):
    drawn = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=rf"mixup\.alpha: .*{message}"):
        data = data_of(DatasetSplit(Described(8, whole)))
        mixed(OFF | {"alpha": 0.2}, data, supervised(data, CROSS_ENTROPY))
    assert torch.equal(drawn, torch.random.get_rng_state())


# Whole runs

WORDS = [*(w for w in RUN if not w.startswith("model.dropout")), "mixup.alpha=0.4"]
PICTURES = [
    "model=cnn", "model.channels=[8]", "model.dense=16", "model.dropout=0.0", "batch.global_size=50",
    "batch.max_per_device=7", "max_steps=16", "log_every=1", "eval_every=8", "threads=1", "hydra.run.dir=run",
    "optimizer.lr=0.01", "mixup.alpha=0.4", "mixup.cutmix_alpha=1.0", "mixup.prob=0.9", "loss.weight=balanced",
]  # fmt: skip


def test_a_run_has_the_same_rows_on_1_2_and_3_ranks(tmp_path):
    """With accumulation, class weights and augmentation; and another result than without."""
    for world in (1, 2, 3):
        train(PICTURES, tmp_path, world, name=f"io{world}").ok()
        (tmp_path / "run").rename(tmp_path / f"run{world}")
    train([w for w in PICTURES if not w.startswith("mixup")], tmp_path).ok()
    one, two, three, plain = (rows(tmp_path / name) for name in ("run1", "run2", "run3", "run"))
    assert len(one) == 16 and one != plain
    for other in (two, three):
        for row, row_1 in zip(other, one, strict=True):
            assert row == pytest.approx(row_1, rel=1e-4, abs=1e-5)


@pytest.mark.soak
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path):
    calm, stopped = place(tmp_path / "calm"), place(tmp_path / "stopped")
    train(WORDS, calm, 2).ok()
    run = train(WORDS, stopped, 2)
    record = stopped / "run/metrics.jsonl"
    while run.processes[0].exitcode is None:
        if record.exists() and record.read_bytes().count(b"\n") > 4:
            run.signal(1, signal.SIGTERM)
            break
        time.sleep(0.002)
    run.ok()
    assert (stopped / "run/stopped.json").exists()
    train(WORDS, stopped, 2, name="io1").ok()
    same_bits(calm, stopped)
    assert rows(calm / "run")[-1]["step"] == STEPS


@pytest.mark.soak
def test_exact_across_devices(tmp_path):
    words = [*WORDS, "exact_across_devices=true", "canonical_shards=4", "epochs=3"]
    directories = {world: place(tmp_path / str(world)) for world in (1, 2)}
    for world, directory in directories.items():
        train(words, directory, world).ok()
    first, second = (load_file(max(d.glob("run/checkpoints/*")) / "model.safetensors") for d in directories.values())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_waited_for():
    device = torch.device("cuda", 0)
    images, labels = pictures(37)
    part = TensorSplit(images.to(device), labels.to(device))
    stream = MixedStream(BOTH, part, plan_batch(37, 10, 1, 4), 5, find_ranks({}).rank, device, 0)
    list(stream.batches(0, 4))
    batches = stream.batches(0, 4)
    first = next(batches)  # numbers the whole epoch
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [torch.cat([micro.inputs for micro in batch.micros]) for batch in (first, *batches)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, images in enumerate(found):
        np.testing.assert_allclose(images.cpu(), loop(BOTH, step)[0], rtol=1e-5, atol=1e-6)
