"""One measurement of a peer: debiased linear CKA of all pairs of layers, on the numbers of `benches/similarity.rs`.

    python benches/peers/similarity_case.py --engine numpy --layers 13 --samples 10000 --width 768 --threads 1

Engines: `numpy` and `torch` are reference forms written for speed (f64, features, each pair once); `gram` is the form that is
copied from notebooks (PyTorch, f32, centring matrices of n x n, each pair anew); `pytorch_cka` and `torch_cka` are packages of
PyPI. `gram` is biased, all others are debiased. The last line it prints is a JSON object. `of_pairs` says how many pairs were
computed; `gram` and `torch_cka` are asked for few of them with `--layers 1`, as they take long for each.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from importlib.metadata import version


def peak_rss_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def noise(np, layer, samples, width):
    """The hash of `benches/similarity.rs`."""
    with np.errstate(over="ignore"):
        hashed = np.arange(samples * width, dtype=np.uint32) + np.uint32(layer * samples * width % 2**32)
        for factor in (0x85EBCA6B, 0xC2B2AE35):
            hashed = (hashed ^ hashed >> np.uint32(16)) * np.uint32(factor)
    return ((hashed >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)).reshape(samples, width)


def stack(np, args):
    layers = [noise(np, 0, args.samples, args.width)]
    for layer in range(1, args.layers):
        layers.append(noise(np, layer, args.samples, args.width) + layers[-1])
    return layers


def from_features(xp, layers):
    """HSIC_1 of centred features: |X'Y|^2, and the lengths of the samples; each pair once."""
    n, size = len(layers[0]), len(layers)
    norms = [(x * x).sum(1) for x in layers]

    def hsic(i, j):
        trace = ((layers[i].T @ layers[j]) ** 2).sum()
        return float(
            trace - n / (n - 2) * (norms[i] @ norms[j]) + norms[i].sum() * norms[j].sum() / ((n - 1) * (n - 2))
        )

    roots = [hsic(i, i) ** 0.5 for i in range(size)]
    return [[hsic(i, j) / roots[i] / roots[j] for j in range(i, size)] for i in range(size)]


def numpy_form(np, layers):
    layers = [x.astype(np.float64) for x in layers]
    return from_features(np, [x - x.mean(0) for x in layers])


def torch_form(torch, layers):
    layers = [x.double() for x in layers]
    return from_features(torch, [x - x.mean(0) for x in layers])


def gram_form(torch, layers):
    """Linear CKA as in most notebooks: centred Gram matrices, every pair from the start."""

    def centred(x):
        n = len(x)
        h = torch.eye(n) - torch.ones(n, n) / n
        return h @ (x @ x.T) @ h

    def hsic(x, y):
        return (centred(x) * centred(y)).sum()

    def cka(x, y):
        return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())

    return [[cka(x, y) for y in layers[i:]] for i, x in enumerate(layers)]


def torch_cka_form(torch, layers):
    """The package on a model whose layers give these features, all samples in one batch."""
    from torch_cka import CKA

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in layers)

        def forward(self, rows):
            for layer, x in zip(self.layers, layers):
                layer(x[rows])
            return rows

    names = [f"layers.{i}" for i in range(len(layers))]
    data = torch.utils.data.TensorDataset(torch.arange(len(layers[0])))
    loader = torch.utils.data.DataLoader(data, batch_size=len(data))
    cka = CKA(Layers(), Layers(), "a", "b", model1_layers=names, model2_layers=names, device="cpu")
    with torch.inference_mode():
        cka.compare(loader)
    return cka.export()["CKA"].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["numpy", "torch", "gram", "pytorch_cka", "torch_cka"], required=True)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import numpy as np

    layers, pairs = stack(np, args), args.layers * (args.layers + 1) // 2
    try:
        if args.engine == "numpy":
            name, run = f"NumPy {np.__version__}", lambda: numpy_form(np, layers)
        else:
            import torch

            torch.set_num_threads(args.threads)
            layers = [torch.from_numpy(x) for x in layers]
            name = f"PyTorch {torch.__version__}"
            run = {"torch": lambda: torch_form(torch, layers), "gram": lambda: gram_form(torch, layers)}.get(args.engine)
            if args.engine == "torch_cka":
                name, pairs = f"torch_cka {version('torch_cka')}", args.layers**2
                run = lambda: torch_cka_form(torch, layers)
            if args.engine == "pytorch_cka":
                from cka import cka_from_features

                name, pairs = f"pytorch-cka {version('pytorch-cka')}", args.layers**2
                run = lambda: cka_from_features(layers, layers).tolist()
        data = peak_rss_mib()
        for _ in range(args.warmup):
            run()
        seconds = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            matrix = run()
            seconds.append(time.perf_counter() - start)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    print(json.dumps({
        "engine": name,
        "case": f"{args.layers}x{args.samples}x{args.width}",
        "threads": args.threads,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "of_pairs": pairs,
        "data_rss_mib": data,
        "base_rss_mib": data,
        "peak_rss_mib": peak_rss_mib(),
        "first_last": matrix[0][-1],
    }))


if __name__ == "__main__":
    main()
