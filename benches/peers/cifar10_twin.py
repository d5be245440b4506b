"""The small recipe of the vision experiments in PyTorch: the same ViT, data, augmentation, optimiser and schedule.

    python benches/peers/cifar10_twin.py --data CIFAR10 --threads 2
    python benches/peers/cifar10_twin.py --data CIFAR10 --threads 2 --objective alternating --seed 1

`CIFAR10` is a folder with parquet files as Hugging Face lays them out. The last line that it prints is a JSON object: accuracy
of the exit after each layer on all test images. What differs from `examples/common/src/recipes.rs` is the generator: other
initial weights, another order, other augmentation.
"""

import argparse
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from models import Vit
from PIL import Image
from torch.nn.functional import cross_entropy, grid_sample, affine_grid

EPOCHS, BATCH, LR, DECAY, CLIP = 8, 64, 2e-3, 1e-4, 1.0
PADDING, DEGREES = 4, 15.0


def images(folder, split):
    """Pixels `(n, 3, 32, 32)` in [0, 1], and labels."""
    paths = sorted(path for where in [folder, folder / "plain_text"] for path in where.glob(f"{split}-*.parquet"))
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
    decode = lambda row: np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
    pixels = np.stack([decode(row) for row in table["img"].to_pylist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(table["label"].to_pylist())


def augmented(pixels):
    """Shifted by up to 4 pixels, mirrored half the time, rotated by up to 15 degrees, black outside."""
    n, side = len(pixels), pixels.shape[-1]
    padded = torch.nn.functional.pad(pixels, [PADDING] * 4)
    corners = torch.randint(2 * PADDING + 1, (n, 2)).tolist()
    pixels = torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, corners)])
    mirrored = torch.rand(n) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(-1)
    angle = (torch.rand(n) * 2 - 1) * math.radians(DEGREES)
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros(n)
    maps = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = affine_grid(maps, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def started(model):
    """Truncated normal of deviation 0.02, zero biases, unit norms."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        elif "norm" not in name:
            torch.nn.init.zeros_(parameter)
    return model


def loss(model, pixels, labels, aligned):
    features = model(pixels)
    if not aligned:
        return cross_entropy(model.logits(features[-1]), labels)
    depth = len(features)
    losses = [cross_entropy(model.logits(feature), labels) for feature in features]
    return sum(2 * (l + 1) / (depth * (depth + 1)) * value for l, value in enumerate(losses))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--objective", choices=["standard", "alternating"], default="standard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    (train, train_labels), (test, test_labels) = images(args.data, "train"), images(args.data, "test")
    mean, std = (f(train, dim=(0, 2, 3)).view(1, 3, 1, 1) for f in (torch.mean, torch.std))
    model = started(Vit(48, 3, 32, 4))
    decays = lambda name, parameter: parameter.dim() >= 2 and name not in ("cls", "positions")
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays(n, p)], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LR)
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps, cycle_momentum=False)
    start, step = time.perf_counter(), 0
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(train)).split(BATCH):
            pixels = (augmented(train[rows]) - mean) / std
            aligned = args.objective == "alternating" and step % 2 == 1
            optimiser.zero_grad()
            value = loss(model, pixels, train_labels[rows], aligned)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            step += 1
        print(f"epoch {epoch + 1}: loss {value.item():.3f}", flush=True)
    seconds = time.perf_counter() - start
    hits = 0
    with torch.no_grad():
        for rows in torch.arange(len(test)).split(500):
            logits = model.logits(torch.stack(model((test[rows] - mean) / std)))  # (layers, rows, classes)
            hits = hits + (logits.argmax(-1) == test_labels[rows]).sum(1)
    result = {"objective": args.objective, "seed": args.seed, "threads": args.threads, "steps": steps, "seconds": seconds}
    print(json.dumps(result | {"torch": torch.__version__, "accuracy": (hits / len(test)).tolist()}))


if __name__ == "__main__":
    main()
