"""One training step of the bench `train_step` in PyTorch eager: the same ViT, batch, objective and optimiser.

    python benches/peers/train_step.py --objective aligned --threads 2

Prints one JSON line. Written the way a careful PyTorch user would for speed: query, key and value in one product,
`scaled_dot_product_attention`, one head product and one cross-entropy for all exits, the fused AdamW.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

IMAGE, PATCH, CHANNELS, CLASSES = 32, 4, 3, 10
WIDTH, DEPTH, HEADS, BATCH = 192, 12, 3, 32


class Block(nn.Module):
    """Pre-norm: attention, then a GELU perceptron four times as wide."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, xs):
        batch, tokens, _ = xs.shape
        q, k, v = self.qkv(self.norm1(xs)).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v)  # (batch, heads, tokens, width / heads)
        xs = xs + self.out(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return xs + self.down(gelu(self.up(self.norm2(xs))))


class Vit(nn.Module):
    """Its forward pass gives the `[CLS]` feature after every block, `(depth, batch, width)`."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (IMAGE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-12), nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels):
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        xs = torch.cat([self.cls.expand(len(pixels), -1, -1), patches], dim=1) + self.positions
        features = []
        for block in self.blocks:
            xs = block(xs)
            features.append(xs[:, 0])
        return torch.stack(features)

    def logits(self, features):
        return self.head(self.norm(features))


def standard(model, pixels, labels):
    return cross_entropy(model.logits(model(pixels)[-1]), labels)


def aligned(model, pixels, labels):
    """Equation 3: the exit after block `l` weighs `2 l / (L (L + 1))`."""
    logits = model.logits(model(pixels))
    losses = cross_entropy(logits.flatten(0, 1), labels.repeat(DEPTH), reduction="none").view(DEPTH, -1).mean(1)
    weights = torch.arange(1, DEPTH + 1) * (2 / (DEPTH * (DEPTH + 1)))
    return weights @ losses


def peak_rss_mib():
    """Of this process alone, from Linux; `ru_maxrss` would carry over the launcher's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=["standard", "aligned"], default="standard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base_rss_mib = peak_rss_mib()  # mostly the library itself

    model = Vit()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    pixels, labels = torch.randn(BATCH, CHANNELS, IMAGE, IMAGE), torch.arange(BATCH) % CLASSES
    objective = {"standard": standard, "aligned": aligned}[args.objective]

    def step():
        optimiser.zero_grad(set_to_none=True)
        loss = objective(model, pixels, labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    for _ in range(args.warmup):
        step()
    seconds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({
        "engine": f"PyTorch {torch.__version__}",
        "objective": args.objective,
        "threads": args.threads,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "base_rss_mib": base_rss_mib,
        "peak_rss_mib": peak_rss_mib(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": loss,
    }))


if __name__ == "__main__":
    main()
