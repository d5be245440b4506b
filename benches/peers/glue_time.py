"""Times fine-tuning on GLUE: an epoch of `f07_aligned_bert` and of `glue_twin.py` in turn, on as many cores as threads.

    python3 benches/peers/glue_time.py --model BERT --data GLUE --venv target/peers
    python3 benches/peers/glue_time.py --model BERT --data GLUE --venv target/peers --tasks mrpc,cola --threads 1 --rounds 5 --samples 640

`--venv` is an environment of `requirements.txt`. Both sides tokenise before the clock runs, and train on the first so many samples in batches of
about one length. A time is the median over rounds; a ratio is the median of the rounds' own ratios, with their smallest and largest.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from compare import CORES, OBJECTIVES, ROOT, commit, middle, processor, ratio, table

TWIN = Path(__file__).with_name("glue_twin.py")


def run(command, threads):
    names = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    env = os.environ | dict.fromkeys(names, str(threads)) | {"CANDLE_NUM_THREADS": "1", "MIMALLOC_PURGE_DELAY": "-1"}
    pin = lambda: os.sched_setaffinity(0, CORES[-threads:])
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env, preexec_fn=pin).stdout


def ours(example, shared, threads):
    with tempfile.TemporaryDirectory() as folder:
        run([example, *shared, "--threads", str(threads), "--out", f"{folder}/out", "--runs", f"{folder}/runs"], threads)
        (task,) = json.loads(Path(folder, "out", "results.json").read_text())["tasks"].values()
        return task["models"][0][0]["train_s"]


def twin(python, shared, threads):
    lines = run([python, str(TWIN), *shared, "--threads", str(threads)], threads).splitlines()
    return sum(json.loads(lines[-1])["epoch_seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--tasks", default="mrpc,cola")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1280)
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--example", "f07_aligned_bert"], check=True, cwd=ROOT)
    example, python = str(ROOT / "target/release/examples/f07_aligned_bert"), str(args.venv / "bin/python")
    rows = []
    for threads in args.threads:
        for task in args.tasks.split(","):
            for objective in OBJECTIVES:
                shared = ["--model", str(args.model), "--data", str(args.data), "--task", task, "--objective", objective]
                shared += ["--epochs", "1", "--train-limit", str(args.samples)]
                times = {"ours": {}, "PyTorch": {}}
                programs = [("ours", ours, example), ("PyTorch", twin, python)]
                for round in range(args.rounds):
                    for name, measure, program in programs[:: 1 if round % 2 == 0 else -1]:
                        times[name][round] = measure(program, shared, threads)
                mine, theirs = times["ours"], times["PyTorch"]
                rows.append([threads, task, objective, middle(mine), middle(theirs), ratio(mine, theirs)])
                print(json.dumps(dict(zip(["threads", "task", "objective"], rows[-1])) | times), flush=True)
    head = ["threads", "task", "objective", "ours, s", "PyTorch, s", "ours / PyTorch"]
    table(f"An epoch of {args.samples} samples, {args.model.name}", head, rows)
    print(f"\n{processor()}, commit {commit()}, {args.rounds} rounds")


if __name__ == "__main__":
    main()
