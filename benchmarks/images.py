"""Folders of JPEG images of real size, made from a seed: one folder a class, as ImageFolder reads them."""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw


def make_image(generator: random.Random, width: int, height: int) -> Image.Image:
    """Smooth shades, edges and grain, which JPEG compresses to the size of a photograph (50 to 100 KB)."""
    coarse = Image.frombytes("RGB", (12, 9), generator.randbytes(12 * 9 * 3))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.randrange(width), generator.randrange(height)
        box = (x, y, x + generator.randrange(20, 200), y + generator.randrange(20, 200))
        pen.ellipse(box, fill=tuple(generator.randbytes(3)))
    grain = Image.frombytes("L", (width, height), generator.randbytes(width * height)).convert("RGB")
    return Image.blend(image, grain, 0.08)


def make_folder(root: Path, count: int, classes: int, seed: int) -> None:
    """Write `count` images of about 500 x 375 pixels under root/class_0, root/class_1, ..."""
    generator = random.Random(seed)
    for number in range(count):
        width, height = generator.choice([(500, 375), (500, 333), (375, 500), (480, 360)])
        folder = root / f"class_{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        make_image(generator, width, height).save(folder / f"{number:05}.jpg", quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_folder(options.root, options.count, options.classes, options.seed)
