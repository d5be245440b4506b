"""Where the time of a training step goes, by Linux perf, on one thread: matrix products and everything else.

    python3 benches/profile.py vit_384_65

Builds the bench `train_step` (or takes `--bench PATH`), samples 40 steps, and prints a Markdown table of shares by kind of
work. Sampling a whole process counts the making of the model in; its random numbers are left out of the shares.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile

from peers import compare

KINDS = [
    ("setup", r"rand|StandardNormal|ZiggTables"),
    ("products: micro-kernels", r"microkernel|horizontal"),
    ("products: laying operands out", r"Panels::fill|fill_lanes|gemm_common|pack_"),
    ("memory: page faults, zeroing, copies", r"\[k\]|memset|memmove|memcpy|mi_|alloc"),
    ("norms", r"layer_norm"),
    ("activation", r"gelu|relu|silu|simd::multiply"),
    ("softmax, cross-entropy", r"softmax|probabilities|cross_entropy"),
    ("dropout", r"simd::drop"),
    ("AdamW", r"simd::(adamw|blend)"),
    ("candle's elementwise operations and copies", r"candle_core"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="of benches/cases")
    parser.add_argument("--bench", help="the built bench")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    bench = args.bench or compare.build()["train_step"]
    env = os.environ | {"CANDLE_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "MIMALLOC_PURGE_DELAY": "-1"}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/perf.data"
        command = [bench, "--json", "--case", args.case, "--threads", "1", "--rounds", str(args.rounds)]
        record = ["perf", "record", "-q", "-F", "997", "-o", data, *command]
        core = max(os.sched_getaffinity(0))
        pin = lambda: os.sched_setaffinity(0, {core})
        out = subprocess.run(record, check=True, stdout=subprocess.PIPE, text=True, env=env, preexec_fn=pin).stdout
        run = json.loads(out.splitlines()[-1])
        report = ["perf", "report", "-i", data, "--no-children", "--stdio", "-F", "overhead,symbol"]
        lines = subprocess.run(report, check=True, capture_output=True, text=True).stdout.splitlines()

    shares = dict.fromkeys([name for name, _ in KINDS] + ["everything else"], 0.0)
    for line in lines:
        if found := re.match(r"\s*([\d.]+)%\s+(.*)", line):
            kind = next((name for name, pattern in KINDS if re.search(pattern, found[2])), "everything else")
            shares[kind] += float(found[1])
    total = sum(shares.values()) - shares.pop("setup")
    products = sum(share for name, share in shares.items() if name.startswith("products"))
    print(f"{args.case}: {run['median_s']:.3f} s a step; its products at the speed of a square one of 1024 {run['limit_s']:.3f} s\n")
    print("| kind of work | share |\n| --- | --- |")
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"| {name} | {100 * share / total:.1f} % |")
    print(f"| **outside of products** | {100 * (1 - products / total):.1f} % |")


if __name__ == "__main__":
    main()
