"""Times one training step of ours and of PyTorch, in turn, and prints a Markdown table.

    python benches/peers/compare.py --threads 2 --rounds 5

Run from the repository's root, with `requirements.txt` installed. A round starts each program once for each objective,
ours and PyTorch next to each other and in alternating order, so that a busy machine disturbs both alike. A cell is the
median over rounds of each run's median step; the ratio is the median of the rounds' own ratios. `--json FILE` keeps
every measurement.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent
OBJECTIVES = ["standard", "aligned"]


def build():
    """Builds the bench `train_step` and returns its path."""
    command = ["cargo", "bench", "--bench", "train_step", "--no-run", "--message-format", "json"]
    messages = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    targets = [json.loads(line) for line in messages if '"train_step"' in line]
    return next(t["executable"] for t in targets if t["target"]["name"] == "train_step" and t.get("executable"))


def run(command, threads):
    """Runs one program with so many threads; its last line is a JSON object."""
    names = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    # candle's own pool spins: as .cargo/config.toml has it for everybody.
    env = os.environ | dict.fromkeys(names, str(threads)) | {"CANDLE_NUM_THREADS": "1"}
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(out.splitlines()[-1])


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    git = subprocess.run(["git", "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    return git.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each run, after 2 to warm up")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    args = parser.parse_args()

    shared = ["--threads", str(args.threads), "--rounds", str(args.steps), "--warmup", "2"]
    programs = {
        "ours": [build(), "--json", *shared],
        "PyTorch": [sys.executable, str(PEERS / "train_step.py"), *shared],
    }
    results = {objective: {name: [] for name in programs} for objective in OBJECTIVES}
    for round in range(args.rounds):
        order = list(programs) if round % 2 == 0 else list(programs)[::-1]
        for objective in OBJECTIVES:
            for name in order:
                command = [*programs[name], "--objective", objective]
                results[objective][name].append(run(command, args.threads))
        print(f"round {round + 1} of {args.rounds}", file=sys.stderr)

    engine = results["standard"]["PyTorch"][0]["engine"]
    print(f"`{commit()}`, {processor()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds\n")
    print(f"| step | ours | {engine} | ours / PyTorch | limit | peak memory, ours | PyTorch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for objective, runs in results.items():
        ours, theirs = ([run["median_s"] for run in runs[name]] for name in programs)
        ratios = [a / b for a, b in zip(ours, theirs)]
        memory = [statistics.median(run["peak_rss_mib"] - run["base_rss_mib"] for run in runs[name]) for name in programs]
        print(
            f"| {objective} | {statistics.median(ours):.3f} s | {statistics.median(theirs):.3f} s "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {min(run['limit_s'] for run in runs['ours']):.3f} s "
            f"| {memory[0]:.0f} MiB | {memory[1]:.0f} MiB |"
        )
    print("\nThe limit is the arithmetic of the step's matrix products at the speed of a square one of 1024, the best of the rounds.")
    print("Memory is the peak above what each process held before it made the model.")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
