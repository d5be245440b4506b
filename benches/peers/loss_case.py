"""The aligned loss over a large vocabulary in PyTorch, forward and backward: what `benches/multi_exit_loss.rs` measures.

    python benches/peers/loss_case.py --form eager --width 384 --exits 6 --tokens 1024 --threads 1

`eager` keeps the logits of all exits until the backward pass, as anybody writes it first; `chunked` recomputes those of some rows at a time there
(`torch.utils.checkpoint`). Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import traceback

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from torch_case import add_device, measure, numbers, peak_device_mib, peak_rss_mib, use_torch


def step(form, features, weight, targets, weights, chunk):
    def loss(xs, targets):
        return cross_entropy(xs @ weight.T, targets, reduction="sum")

    total = 0
    for xs, share in zip(features, weights):
        if form == "eager":
            total = total + share * cross_entropy(xs @ weight.T, targets)
        else:
            parts = zip(xs.split(chunk), targets.split(chunk))
            total = total + share / len(targets) * sum(checkpoint(loss, x, y, use_reentrant=False) for x, y in parts)
    total.backward()
    for tensor in [*features, weight]:
        tensor.grad = None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=["eager", "chunked"], default="eager")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--exits", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    add_device(parser)
    args = parser.parse_args()
    use_torch(args)
    dtype = numbers(torch, args)
    try:
        base = peak_rss_mib()
        features = [torch.randn(args.tokens, args.width, device=args.device, dtype=dtype, requires_grad=True) for _ in range(args.exits)]
        weight = (0.02 * torch.randn(args.vocabulary, args.width, device=args.device)).to(dtype).requires_grad_()
        targets = torch.arange(args.tokens, device=args.device) * 7919 % args.vocabulary
        weights = [2 * l / (args.exits * (args.exits + 1)) for l in range(1, args.exits + 1)]
        seconds, _ = measure(lambda: step(args.form, features, weight, targets, weights, args.chunk), args)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    inputs = (args.vocabulary + args.exits * args.tokens) * args.width * dtype.itemsize / 2**20
    peak = peak_rss_mib()
    device = peak_device_mib(args)
    print(json.dumps({
        "engine": f"PyTorch {torch.__version__}",
        "form": args.form,
        "threads": args.threads,
        "device": args.device,
        "dtype": args.dtype,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "base_rss_mib": base,
        "peak_rss_mib": peak,
        "peak_device_mib": device,
        "extra_mib": (peak - base if device is None else device) - 2 * inputs,
    }))


if __name__ == "__main__":
    main()
