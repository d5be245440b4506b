#!/usr/bin/env bash
# Where the time of a training step goes, by Linux perf, on one thread: matrix products (micro-kernels, and laying operands out
# for them) and everything else.
#
#     benches/profile.sh vit_384_65 [BENCH]
#
# BENCH is the built bench `train_step`; without it, it is built. Sampling whole processes counts the making of the model in;
# its random numbers are left out of the shares.
set -euo pipefail
cd "$(dirname "$0")/.."
case=${1:?a case of benches/cases}
bench=${2:-$(cargo bench --bench train_step --no-run --message-format json 2>/dev/null |
  python3 -c 'import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] == "train_step": print(m["executable"])')}
data=$(mktemp)
trap 'rm -f "$data"' EXIT
export CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1 MIMALLOC_PURGE_DELAY=-1
core=$(($(nproc) - 1))
taskset -c "$core" perf record -q -F 997 -o "$data" "$bench" --json --case "$case" --threads 1 --rounds 40 |
  python3 -c 'import json, sys
run = json.loads(sys.stdin.read().splitlines()[-1])
print(f"{run[\"case\"]}, {run[\"objective\"]}: {run[\"median_s\"]:.3f} s a step; its products at the peak of a square one: {run[\"limit_s\"]:.3f} s")'
perf report -i "$data" --no-children --stdio -F overhead,symbol 2>/dev/null | python3 -c '
import re, sys
CLASSES = [
    ("random numbers", r"rand|StandardNormal|ZiggTables"),
    ("products: micro-kernels", r"microkernel|horizontal"),
    ("products: laying out", r"Panels::fill|fill_lanes|gemm_common|pack_"),
    ("memory: page faults, zeroing, copies", r"\[k\]|memset|memmove|memcpy|mi_|alloc"),
    ("norms", r"layer_norm"),
    ("activation", r"gelu|relu|silu|multiply"),
    ("softmax and cross-entropy", r"softmax|probabilities|cross_entropy"),
    ("dropout", r"simd::drop"),
    ("AdamW", r"adamw"),
    ("candle: elementwise, copies", r"candle_core"),
]
shares = dict.fromkeys([name for name, _ in CLASSES] + ["rest"], 0.)
for line in sys.stdin:
    found = re.match(r"\s*([\d.]+)%\s+(.*)", line)
    if found:
        name = next((name for name, pattern in CLASSES if re.search(pattern, found[2])), "rest")
        shares[name] += float(found[1])
total = sum(shares.values()) - shares.pop("random numbers")
products = sum(share for name, share in shares.items() if name.startswith("products"))
for name, share in sorted(shares.items(), key=lambda item: -item[1]):
    print(f"| {name} | {100 * share / total:.1f} % |")
print(f"| outside of products | {100 * (1 - products / total):.1f} % |")'
