"""What does not fit together is a sentence before the run: nothing is made, and what fits is not touched."""

import copy
import random
import time

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from processes import REPOSITORY, rows, train
from torch import nn
from torch.nn import functional as F

from launcher import build
from launcher.batching import workers
from launcher.batching.generators import seed_generators
from launcher.batching.splits import as_numbers, suit
from launcher.batching.stream import Stream, in_order
from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.distributed.ranks import find_ranks
from launcher.losses.per_sample import PerSample
from launcher.tasks.outputs import Outputs
from launcher.training import tryout

OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from launcher.data import Data, DatasetSplit, TensorSplit

def of(dtype, n, shape, bad=()):
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
    x += torch.arange(n).view(-1, *[1] * len(shape)) % 3
    x = (x > 0) if dtype == "bool" else (20 * x + 100).clamp(0, 255) if "int" in dtype else x
    return x.to(getattr(torch, dtype))

def tensors(dtype="float32", shape=(4,), bad=None, value=0.0, labels="int64"):
    made = {}
    for name, n in (("train", 60), ("validation", 30), ("test", 31)):
        x, y = of(dtype, n, shape), torch.arange(n) % 3
        if bad == f"input of {name}":
            x[5] = value
        if bad == f"label of {name}":
            y[7] = int(value)
        made[name] = TensorSplit(x, y.to(getattr(torch, labels)))
    return Data("own", "classification", tuple(shape), 3, **made)

def two():
    part = lambda n: TensorSplit(of("float32", n, (4,)), torch.zeros(n, dtype=torch.int64))
    return Data("own", "classification", (4,), 2, part(60), part(30), part(31))

class Samples(torch.utils.data.Dataset):
    def __init__(self, n, kind):
        self.n, self.kind, self.file = n, kind, None
        if kind == "lambda":
            self.change = lambda x: x
        if kind == "local":
            class Change:
                def __call__(self, x):
                    return x
            self.change = Change()
        if kind == "open":
            self.file = open(__file__)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if self.file is None:
            self.file = open(__file__)  # as h5py and lmdb want it: in the process that reads
        x, y = torch.full((4,), float(i % 3)), i % 3
        if self.kind == "double":
            x = x.double()
        if self.kind == "numbers of Python":
            return {"x": x.tolist()}["x"][0] * np_ones(4), float(y)
        if self.kind == "dict target":
            y = {"class": y}
        if self.kind == "ragged":
            x = x[: 2 + i % 3]
        if self.kind == "fails":
            raise KeyError("image")
        if self.kind == "late label" and i == 25:
            y = -100
        if self.kind == "late class" and i == 25:
            y = 9
        if self.kind == "late input" and i == 25:
            x = x * float("nan")
        if self.kind == "input":
            x = x * float("nan")
        if self.kind == "other shape":
            x = x[:3]
        return x, y

class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), 0

def dataset(train="", measured=""):
    part = lambda n, kind: DatasetSplit(Endless() if kind == "iterable" else Samples(n, kind))
    return Data("own", "classification", (4,), 3, part(60, train), part(30, measured), part(31, measured))

class Net(nn.Module):
    def __init__(self, in_features, num_outputs, gives=""):
        super().__init__()
        self.line, self.gives = nn.Linear(in_features, num_outputs), gives

    def forward(self, x):
        out = self.line(x.flatten(1))
        return {"": out, "dict": {"scores": out}, "tuple": (out, out), "one": out[:, :1], "squeezed": out.squeeze(),
                "detached": out.detach(), "turned": out.T, "more": torch.cat([out, out], 1)}[self.gives]

class Loss(nn.Module):
    def __init__(self, kind=""):
        super().__init__()
        self.kind = kind

    def forward(self, outputs, targets):
        each = F.cross_entropy(outputs, targets, reduction="none")
        if self.kind == "fails":
            return outputs + torch.zeros(7)
        return {"": each, "mean": each.mean(), "sum": each.sum(), "tuple": (each, 1), "few": each[:2]}[self.kind]
"""
RUN = ["threads=1", "epochs=2", "hydra.run.dir=run", "batch.global_size=16"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/own.yaml").write_text("_target_: own.Loss\nkind: ''\n")
    return tmp_path


def answer(place, words, world=1):
    """The one sentence of a command that is refused; nothing is made."""
    run = train([*RUN, "--config-dir", "conf", *words], place, world).wait()
    assert run.status[0] == 2 and "Traceback" not in run.err() and not (place / "run").exists(), run.err()
    (line,) = [line for line in run.err().splitlines() if line.startswith("error: ")][:1]
    return line


# Any dtype


VECTORS, IMAGES = ["model.hidden=[4]"], ["+data.shape=[3,8,8]", "model=cnn", "model.channels=[4]"]
ALWAYS = [("float64", VECTORS), ("bool", VECTORS), ("int64", VECTORS), ("float16", IMAGES)]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        pytest.param(dtype, words, marks=() if (dtype, words) in ALWAYS else pytest.mark.soak)
        for dtype in ("float64", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64")
        for words in (VECTORS, IMAGES)
    ],
)
def test_inputs_of_any_dtype_are_trained_on(dtype, words, place):
    """As the same numbers in float32 would be."""
    seen = {}
    for name, kind in {"own": dtype, "float": f"{dtype} as float32"}.items():
        code = (
            OWN if name == "own" else OWN.replace("x.to(getattr(torch, dtype))", "x.to(getattr(torch, dtype)).float()")
        )
        (place / name).mkdir()
        (place / name / "own.py").write_text(code)
        run = ["data._target_=own.tensors", f"+data.dtype={kind.split()[0]}", *words, *RUN]
        train(run, place / name).ok()
        seen[name] = rows(place / name / "run")
    assert seen["own"] == seen["float"]


def test_labels_and_samples_of_any_dtype(place):
    for i, words in enumerate((["own.tensors", "+data.labels=uint8"], ["own.tensors", "+data.labels=int32"],
                               ["own.dataset", "+data.train=double", "+data.measured=double"])):  # fmt: skip
        words = [f"data._target_={words[0]}", *words[1:], "num_workers=0", f"hydra.run.dir=run{i}"]
        train([*RUN, *words], place, name=f"io{i}").ok()


def test_a_model_gets_numbers_in_the_type_of_its_own_parameters():
    double, half = nn.Linear(4, 2).double(), nn.Linear(4, 2).half()
    for model, kind in ((double, torch.float64), (half, torch.float16), (nn.Linear(4, 2), torch.float32)):
        part = TensorSplit(torch.rand(6, 4, dtype=torch.float64), torch.zeros(6))
        suit(model, part)
        inputs, _ = next(in_order(part, 0, 1, 4, torch.device("cpu"), 0))
        assert inputs.dtype is kind and model(inputs).dtype is kind


def test_indices_stay_whole_where_the_model_takes_them():
    part = TensorSplit(torch.randint(9, (8, 5)), torch.arange(8) % 2)
    data = Data("own", "classification", (5,), 2, part, part, part)

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.line = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.line(self.words(x).mean(1))

    for model, indices in ((Bag(), True), (nn.Linear(5, 2), False)):
        tried(model, nn.CrossEntropyLoss(), data)
        assert part.indices is indices
        assert as_numbers(part.inputs, part).dtype is (torch.int64 if indices else torch.float32)


def tried(model, loss, data, cut=None, workers=0, **settings):
    settings = settings or {"_target_": f"{type(loss).__module__}.{type(loss).__qualname__}"}
    suit(model, *data.splits().values())
    meaning = Outputs(data.task, data.num_outputs)
    return tryout.try_out(model, PerSample(loss, data.task), data, meaning, Stream, tryout.How(workers, cut))


# What is told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["own.tensors", "+data.bad=input of train", "+data.value=nan"],
            "inputs of sample 5 of its train split hold NaN",
        ),
        (["own.tensors", "+data.bad=input of test", "+data.value=inf"], "sample 5 of its test split hold NaN"),
        (["own.tensors", "+data.bad=label of train", "+data.value=-100"], "train split have -100 at sample 7"),
        (["own.tensors", "+data.bad=label of validation", "+data.value=-100"], "split have -100 at sample 7"),
        (["own.tensors", "+data.bad=label of test", "+data.value=3"], "none of its 3 classes, 0..2"),
        (["own.tensors", "+data.labels=float32"], "takes one whole number per sample"),
        (["own.dataset", "+data.train=iterable"], "Endless has no length and no sample by number"),
        (["own.dataset", "+data.train=dict target"], "a target of its train split is a dict, {class: [3] int64}"),
        (["own.dataset", "+data.measured=dict target"], "a target of its validation split is a dict"),
        (["own.dataset", "+data.train=ragged"], "the first samples of the train split cannot be read"),
        (
            ["own.dataset", "+data.measured=fails"],
            "the validation split cannot be read: KeyError: 'image' [__getitem__,",
        ),
        (["own.dataset", "+data.train=input"], "a sample of its train split holds NaN"),
        (
            ["own.dataset", "+data.measured=other shape"],
            "a sample of its validation split is [3], and input_shape says [4]",
        ),
        (["own.tensors", "model._target_=own.Net", "+model.gives=dict"], "model: gives a dict of scores for 3 samples"),
        (["own.tensors", "model._target_=own.Net", "+model.gives=tuple"], "model: gives a tuple for 3 samples"),
        (
            ["own.tensors", "model._target_=own.Net", "+model.gives=one"],
            "gives [3, 1] for 3 samples; the task classification",
        ),
        (["own.tensors", "model._target_=own.Net", "+model.gives=more"], "gives [3, 6] for 3 samples"),
        (["own.tensors", "model._target_=own.Net", "+model.gives=squeezed"], "gives [3] for 1 samples"),
        (["own.tensors", "model._target_=own.Net", "+model.gives=detached"], "has no gradient"),
        (
            ["own.tensors", "model._target_=own.Net", "+model.in_features=5"],
            "model: Net fails on inputs [3, 4] float32: ",
        ),
        (
            ["own.tensors", "loss=own", "loss.kind=tuple"],
            "loss: Loss fails on outputs [3, 3] float32 and targets [3] int64",
        ),
        (
            ["own.tensors", "loss=own", "loss.kind=few"],
            "loss: Loss gives [2] for 3 samples; it must be one value per sample",
        ),
        (["own.tensors", "loss=own", "loss.kind=fails"], "[forward, line"),
        (
            ["own.two", "model._target_=own.Net", "+model.gives=one"],
            "CrossEntropyLoss takes a score for each of two classes, and the model gives [3, 1] for 3 samples, one",
        ),
        (
            ["own.tensors", "loss=own", "loss.kind=sum", "batch.max_per_device=5"],
            "batch.max_per_device=5 cuts the global",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_made(words, expected, place):
    words = [f"data._target_={words[0]}", *words[1:], "num_workers=0"]
    line = answer(place, [word.replace("=", "='") + "'" if " " in word else word for word in words])
    assert expected in line, line


@pytest.mark.parametrize("kind", ["lambda", "local", "open"])
def test_what_cannot_be_sent_to_a_worker_is_told(kind, place):
    words = ["data._target_=own.dataset", f"+data.measured={kind}"]
    line = answer(place, [*words, "num_workers=2"])
    assert "num_workers=2: the dataset of the validation split cannot be sent" in line and "num_workers=0" in line, line
    if kind != "open":
        train([*RUN, *words, "num_workers=0"], place).ok()


def test_nan_that_a_run_leaves_out_is_not_refused(place):
    words = ["data._target_=own.tensors", "+data.bad='input of train'", "+data.value=nan", "divergence.action=rollback"]
    run = train([*RUN, *words, "checkpoint.every=1"], place).ok()
    assert "Going back to the last checkpoint" in run.out() and "hold NaN or infinity (samples " in run.out()


def test_every_rank_gives_the_same_answer(place):
    words = ["data._target_=own.tensors", "loss=own", "loss.kind=sum"]
    assert "a run on 2 devices cuts the global batch" in answer(place, words, world=2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["+data.measured=late label"], "data: 1 targets of what was measured are none of the 3 classes"),
        (["+data.measured=late class"], "data: a target is 9, which is none of the 3 classes, 0..2"),
        (["+data.train=late class"], "data: a target is 9, which is none of the 3 classes, 0..2"),
        (["+data.measured=late input"], "the inputs of sample 25 of what is measured hold NaN"),
        (["+data.train=late input"], "hold NaN or infinity (samples "),
    ],
)
def test_what_shows_when_its_turn_comes_is_a_sentence_too(words, expected, place):
    words = [word.replace("=", "='") + "'" for word in words]
    run = train([*RUN, "data._target_=own.dataset", *words, "num_workers=0"], place).wait()
    assert run.status == [1] and expected in run.err(), run.err()
    assert "Traceback" not in run.err() or "samples" in expected


# A loss that is cut


class Contrastive(nn.Module):
    """Supervised contrastive, as a mean; or a value for each sample that looks at the others."""

    def __init__(self, each=False):
        super().__init__()
        self.each = each

    def forward(self, outputs, targets):
        alike = F.normalize(outputs, dim=1) @ F.normalize(outputs, dim=1).T / 0.5
        alike = alike.masked_fill(torch.eye(len(outputs), dtype=torch.bool), -1e9)
        same = (targets[:, None] == targets) & ~torch.eye(len(outputs), dtype=torch.bool)
        values = -(alike.log_softmax(1) * same).sum(1) / same.sum(1).clamp(min=1)
        return values if self.each else values.mean()


class Variance(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets) + outputs.var(0).mean()


class WeightedMean(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 5.0]))


class Plain(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, outputs, targets):
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each if self.how == "each" else getattr(each, self.how)()


class Weighing(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") * (1.0 + targets)

    def weights(self, targets):
        return 1.0 + targets


class WeighingByBatch(Weighing):
    def weights(self, targets):
        return (1.0 + targets) / (1.0 + targets).sum()


class Allowed(Contrastive):
    may_be_cut = True


class Shares(nn.Module):
    """Takes nothing but probabilities."""

    def forward(self, outputs, targets):
        assert outputs.min() >= 0
        return -outputs.gather(1, targets[:, None]).log().mean()


@pytest.mark.parametrize(
    ("loss", "refused"),
    [
        (Contrastive(), True), (Contrastive(each=True), True), (Variance(), True), (WeightedMean(), True),
        (Plain("sum"), True), (Plain("max"), True), (WeighingByBatch(), True),
        (Plain("mean"), False), (Plain("each"), False), (Weighing(), False), (Allowed(), False),
        (nn.CrossEntropyLoss(), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zeros", [False, True])
def test_a_loss_that_looks_at_the_batch_is_not_cut(loss, refused, zeros):
    model = nn.Linear(4, 3)
    if zeros:  # as many models begin: the outputs of all samples are the same
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
    part = TensorSplit(torch.randn(20, 4), torch.arange(20) % 3)
    data = Data("own", "classification", (4,), 3, part, part, part)
    tried(model, loss, data)  # one device sees all of the batch: nobody minds
    if refused:
        with pytest.raises(ConfigError, match=r"depends on which others it sees, and .* `may_be_cut = True`"):
            tried(model, loss, data, cut="batch.max_per_device=4")
    else:
        tried(model, loss, data, cut="batch.max_per_device=4")


def test_a_loss_that_takes_no_random_outputs_is_tried_on_those_of_the_model():
    part = TensorSplit(torch.rand(20, 4), torch.arange(20) % 3)
    data = Data("own", "classification", (4,), 3, part, part, part)
    tried(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), Shares(), data, cut="batch.max_per_device=4")


# No trace


SHIPPED = [
    ["model=mlp"], ["model=linear"], ["model=cnn"], ["model=resnet"], ["data=iris"], ["data=diabetes", "loss=mse"],
    ["data=wine", "model=mlp", "model.dropout=0.5"], ["model=cnn", "mixup.alpha=0.2"],
    ["model=cnn", "sampling=balanced"],
    ["data=text", "data.path=book.txt", "model=transformer"], ["model=torchvision"], ["model=timm"],
]  # fmt: skip


def built(words, times=None):
    """The parts of a run, and the seconds that each of `times` tries takes."""
    with composition.opened(parse_arguments(words), "train") as (hydra, name):
        settings = composition.compose(hydra, name, words).settings
    real, taken = build.try_task, []

    def timed(*arguments):
        for _ in range(times or 1):
            begun = time.thread_time()
            found = real(*arguments)
            taken.append(time.thread_time() - begun)
        return found

    build.try_task = timed
    try:
        return build.build(settings, find_ranks({}), 1, False, lambda make: make(), tried=times != 0), taken
    finally:
        build.try_task = real


@pytest.fixture
def book(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("hello world, this is a text. " * 2000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.mark.parametrize("words", SHIPPED, ids=" ".join)
def test_it_leaves_no_trace_and_takes_no_time(words, book):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ends = []
        for times in (0, 5):
            found, taken = built(words, times)
            ends.append((found.model.state_dict(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1],
                         [module.training for module in found.model.modules()], found.data.notes))  # fmt: skip
        (state, torchs, pythons, numpys, modes, notes), other = ends
        assert all(torch.equal(tensor, other[0][name]) for name, tensor in state.items())
        assert torch.equal(torchs, other[1]) and pythons == other[2] and np.array_equal(numpys, other[3])
        assert modes == other[4] and notes == other[5]
        assert not any(parameter.grad is not None for parameter in found.model.parameters())
        assert min(taken) < 0.1, taken  # 3 to 40 ms where the cores are free
    finally:
        torch.set_num_threads(threads)


def test_a_batchnorm_and_modules_in_a_mode_of_their_own_stay():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    part = TensorSplit(torch.randn(20, 4), torch.arange(20) % 3)
    seed_generators(3)
    state = torch.get_rng_state()
    tried(model, nn.CrossEntropyLoss(), Data("own", "classification", (4,), 3, part, part, part))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.line(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_is_tried_too(monkeypatch):
    model = torch.jit.script(Scripted())
    before = copy.deepcopy(model.state_dict())
    part = TensorSplit(torch.randn(20, 4), torch.arange(20) % 3)
    data = Data("own", "classification", (4,), 3, part, part, part)
    tried(model, nn.CrossEntropyLoss(), data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"gives \[3, 3\] for 3 samples"):
        tried(model, nn.CrossEntropyLoss(), Data("own", "classification", (4,), 4, part, part, part))
    monkeypatch.setattr(tryout, "LARGE", 1)
    tried(model, nn.CrossEntropyLoss(), data)


class Lazy(torch.utils.data.Dataset):
    """Opens its file when it is first read."""

    def __init__(self):
        self.file, self.array, self.tensor = None, np.zeros(1000), torch.zeros(1000)

    def __len__(self):
        return 9

    def __getitem__(self, i):
        self.file = self.file or open(__file__)  # noqa: SIM115
        torch.rand(1), random.random(), np.random.rand()
        return torch.full((4,), float(i)), i % 3


def test_a_dataset_that_opens_files_can_still_be_sent_to_workers():
    data = Data("own", "classification", (4,), 3, *(DatasetSplit(Lazy()) for _ in range(3)))
    tried(nn.Linear(4, 3), nn.CrossEntropyLoss(), data, workers=2)
    assert data.train.dataset.file is None and not workers._kept
    other = tryout.copy_for_worker(data.train, 2).dataset
    assert other is not data.train.dataset and other.array is data.train.dataset.array, "arrays are not copied"
    assert other.tensor is data.train.dataset.tensor
    tried(nn.Linear(4, 3), nn.CrossEntropyLoss(), data, workers=0)
    assert data.train.dataset.file is not None, "without workers this very dataset is read anyway"


def test_a_large_model_is_tried_by_its_shapes(monkeypatch):
    monkeypatch.setattr(tryout, "LARGE", 10)
    part = TensorSplit(torch.randn(20, 4), torch.arange(20) % 3)
    data = Data("own", "classification", (4,), 3, part, part, part)
    begun = []

    class Watched(nn.Linear):
        def forward(self, x):
            begun.append(x.is_meta)
            return super().forward(x)

    tried(Watched(4, 3), nn.CrossEntropyLoss(), data)
    assert begun == [True] * 3
    with pytest.raises(ConfigError, match=r"gives \[3, 7\] for 3 samples"):
        tried(Watched(4, 7), nn.CrossEntropyLoss(), data)
    with pytest.raises(ConfigError, match="depends on which others"):
        tried(Watched(4, 3), Contrastive(), data, cut="batch.max_per_device=4")

    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() else None

    tried(Looks(4, 3), nn.CrossEntropyLoss(), data)
    with pytest.raises(ConfigError, match=r"gives \[3, 7\] for 3 samples"):  # which does not work without memory
        tried(Looks(4, 7), nn.CrossEntropyLoss(), data)
    with pytest.raises(ConfigError, match=r"Looks fails on inputs \[3, 4\] float32: RuntimeError: .*shapes"):
        tried(Looks(5, 3), nn.CrossEntropyLoss(), data)
    monkeypatch.setattr(tryout, "WORK", 7 * 5 * 3)
    tried(Looks(4, 7), nn.CrossEntropyLoss(), data)  # would take too long


def test_settings_of_every_loss_option_are_tried(book):
    for path in sorted((REPOSITORY / "conf/loss").glob("*.yaml")):
        settings = OmegaConf.load(path)
        data = "diabetes" if settings._target_.split(".")[-1] in ("MSELoss", "L1Loss", "HuberLoss") else "iris"
        assert built([f"loss={path.stem}", f"data={data}"])[0].learner.task.outputs.task
