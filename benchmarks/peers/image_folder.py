"""A folder of JPEG images by ImageFolder and a DataLoader, as PyTorch's ImageNet example has it.

The model is next to nothing, so that reading, decoding and cropping the images is what is timed.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_model(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(3 * 16, num_outputs))


def main() -> None:
    from torchvision import datasets, transforms

    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--warm", type=int, default=5, help="steps before the rate is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    dataset = datasets.ImageFolder(
        str(options.root),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(options.size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    )
    loader = DataLoader(
        dataset,
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        prefetch_factor=options.prefetch if options.workers else None,
    )
    model = build_model(len(dataset.classes))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    step = samples = 0
    waited = 0.0
    begin = asked = time.perf_counter()
    for _ in range(options.epochs):
        for inputs, targets in loader:
            now = time.perf_counter()
            if step >= options.warm:
                waited += now - asked
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            step += 1
            asked = time.perf_counter()
            if step == options.warm:
                begin = asked
            elif step > options.warm:
                samples += len(targets)
    seconds = asked - begin
    line = json.dumps(
        {
            "peer": "ImageFolder",
            "workers": options.workers,
            "steps": step,
            "samples_per_second": samples / seconds,
            "data_wait": waited / seconds,
        }
    )
    print(line, flush=True)
    if options.report is not None:
        options.report.write_text(line + "\n")


if __name__ == "__main__":
    main()
