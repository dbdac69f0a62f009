"""What is trained beside a hand-written loop: made data, models, the loop, and the words for the launcher."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launcher.data import Data, TensorSplit
from launcher.models.transformer import Transformer
from launcher.training.clock import start_profiler
from launcher.training.flops import flops_per_sample, peak_flops

LEARNING_RATE, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True)
class Workload:
    """One model on one kind of data, and how much of it.

    Args:
        name: resnet18, transformer or mlp.
        samples: Of the training part, on the device.
        side: Of an image in pixels, or tokens of a sample.
        batch: Samples of an update.
        steps: Updates.
        warm: Of these, before the clock starts.
        log_every: Updates between two rows of the launcher's timings.
        width: Of the transformer; its layers are `layers`.
        layers: Of the transformer.
        bf16: Whether in bfloat16.
        channels_last: Whether images lie with their channels last.
    """

    name: str
    samples: int
    side: int
    batch: int
    steps: int
    warm: int = 50
    log_every: int = 50
    width: int = 0
    layers: int = 0
    bf16: bool = False
    channels_last: bool = False


WORKLOADS = {
    "resnet18": Workload("resnet18", 2048, 224, 256, 400, bf16=True, channels_last=True),
    "transformer": Workload("transformer", 4096, 512, 32, 400, width=768, layers=12, bf16=True),
    "mlp": Workload("mlp", 54_000, 28, 64, 6000),
}
SMALL = {"samples": 64, "batch": 2, "steps": 20, "warm": 8, "log_every": 4}
DRY = {
    "resnet18": replace(WORKLOADS["resnet18"], side=32, **SMALL),
    "transformer": replace(WORKLOADS["transformer"], side=32, **{**SMALL, "width": 64, "layers": 2}),
    "mlp": replace(WORKLOADS["mlp"], samples=2000, steps=1000),
}


class Scale(nn.Module):
    """Bytes to numbers of mean 0 and variance 1."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.float().sub_(127.5).div_(73.9)


def images(samples: int, side: int, channels: int, classes: int) -> Data:
    """Noise whose brightness follows its class: inputs [n, channels, side, side] uint8."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> TensorSplit:
        targets = torch.arange(count) % classes
        raw = torch.randint(0, 128, (count, channels, side, side), generator=generator, dtype=torch.uint8)
        raw += (127 * targets // classes).to(torch.uint8).view(-1, 1, 1, 1)
        return TensorSplit(raw, targets, Scale())

    return Data("made", "classification", (channels, side, side), classes, part(samples), part(64), part(64))


def tokens(samples: int, block: int, vocabulary: int) -> Data:
    """A stream in which each token follows from the one before, mostly: inputs and targets [n, block] int64."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> TensorSplit:
        steps = torch.randint(0, 3, (count, block + 1), generator=generator)
        stream = steps.cumsum(1) % vocabulary
        return TensorSplit(stream[:, :-1].contiguous(), stream[:, 1:].contiguous())

    return Data("made", "language", (block,), vocabulary, part(samples), part(64), part(64))


def load(name: str, samples: int, side: int) -> Data:
    """The data of a workload, for the launcher and for the loop."""
    if name == "transformer":
        return tokens(samples, side, 8192)
    return images(samples, side, *((3, 1000) if name == "resnet18" else (1, 10)))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, figure 2)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)), inplace=True)
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(inputs), inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 for images of 224 pixels (He et al. 2015, table 1), its parameters named as in torchvision."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for stage, after in enumerate((64, 128, 256, 512), 1):
            blocks = [Block(before, after, 1 if stage == 1 else 2), Block(after, after, 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = after
        self.fc = nn.Linear(512, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.bn1(self.conv1(inputs)), inplace=True), 3, 2, 1)
        for stage in range(1, 5):
            hidden = getattr(self, f"layer{stage}")(hidden)
        return self.fc(hidden.mean((2, 3)))


def build_model(workload: Workload) -> nn.Module:
    """The model of a workload, as the hand-written loop makes it."""
    if workload.name == "resnet18":
        return ResNet18(1000)
    if workload.name == "transformer":
        shape = workload.width, workload.layers, workload.width // 64
        return Transformer(8192, workload.side, *shape, 4, "learned", "gelu", 0.0, True)
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))


def words(workload: Workload, seed: int) -> list[str]:
    """The command line by which the launcher does the loop's work."""
    model = {
        "resnet18": ["model._target_=benchmarks.gpu.workloads.ResNet18"],
        "transformer": [
            "model=transformer", f"model.width={workload.width}", f"model.layers={workload.layers}",
            f"model.heads={workload.width // 64}",
        ],
        "mlp": ["model=mlp", "model.hidden=[64]"],
    }[workload.name]  # fmt: skip
    return [
        "data._target_=benchmarks.gpu.workloads.load", f"+data.name={workload.name}",
        f"+data.samples={workload.samples}", f"+data.side={workload.side}", *model, "optimizer=sgd",
        f"optimizer.lr={LEARNING_RATE}", f"optimizer.momentum={MOMENTUM}", "scheduler=cosine",
        "scheduler.interval=step", f"batch.global_size={workload.batch}", f"max_steps={workload.steps}",
        "epochs=1000000", f"mixed_precision={'bf16' if workload.bf16 else 'no'}",
        f"channels_last={str(workload.channels_last).lower()}", "deterministic=false", "eval_every=null",
        "checkpoint.best=null", "checkpoint.every=null", f"log_every={workload.log_every}", f"seed={seed}",
        "hydra.run.dir=run",
    ]  # fmt: skip


def train_by_hand(
    workload: Workload, device: torch.device, seed: int, profiler: torch.profiler.profile | None = None
) -> dict[str, Any]:
    """A loop as a person writes it who knows PyTorch: data on the device, one gather a batch, a fused optimizer.

    Args:
        workload: What to train.
        device: Where.
        seed: Of weights and order.
        profiler: Told after each update.

    Returns:
        `steps_per_second` after the warm updates, `mfu` where the device's peak is known, `peak_memory_mb` on a GPU.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    part = load(workload.name, workload.samples, workload.side).train
    inputs, targets = part.inputs.to(device), part.targets.to(device)
    layout = torch.channels_last if workload.channels_last else torch.preserve_format
    model = build_model(workload).to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=workload.steps)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    done, begun = 0, 0.0
    while done < workload.steps:
        order = torch.randperm(len(inputs), device=device)
        for index in order.split(workload.batch):
            batch = inputs[index] if part.prepare is None else part.prepare(inputs[index])
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=workload.bf16):
                outputs = model(batch.contiguous(memory_format=layout) if workload.channels_last else batch)
                loss = F.cross_entropy(outputs.flatten(0, -2), targets[index].flatten())
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if profiler is not None:
                profiler.step()
            if done == workload.warm:
                wait()
                begun = time.perf_counter()
            if done == workload.steps:
                break
    wait()
    rate = (workload.steps - workload.warm) / (time.perf_counter() - begun)
    found = {"steps_per_second": rate, "samples_per_second": rate * workload.batch}
    if device.type == "cuda":
        found["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        precision = ("bf16" if workload.bf16 else "no", torch.get_float32_matmul_precision())
        peak = peak_flops(torch.cuda.get_device_name(device), *precision)
        if peak is not None:
            flops = flops_per_sample(model, batch[:1].to(memory_format=layout), 1)
            found["mfu"] = rate * workload.batch * flops / peak
    return found


def profile_by_hand(workload: Workload, device: torch.device, path: Path) -> None:
    """Write the trace of some steps of the loop."""
    profiler = start_profiler(path)
    train_by_hand(replace(workload, steps=20, warm=5), device, 0, profiler)
    profiler.stop()
