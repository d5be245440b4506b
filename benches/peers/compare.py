"""Times ours and the peers in turn, and prints Markdown tables: training steps, inference, AdamW, similarity, the loss of a large vocabulary, exits, text.

    python3 benches/peers/compare.py
    python3 benches/peers/compare.py --sets train --cases vit_192 --threads 1 --rounds 3
    python3 benches/peers/compare.py --sets exits --model MODEL --data DATA --threshold 0.9 --batches 16 64 256
    python3 benches/peers/compare.py --sets decode --model MODEL --data TEXT --batches 1 8

Exits and text are of a model that was trained, on its data, and only measured where they are asked for.

The first call makes a virtual environment of `requirements.txt` at `target/peers`. Every measurement is a process of its
own, pinned to as many cores as it has threads. A round runs each program once for everything that is compared, ours and
the peers next to each other and in alternating order, so that a busy machine disturbs all alike. A time is the median
over rounds of each run's median step; a ratio is the median of the rounds' own ratios, with their smallest and largest.
`--json FILE` keeps every measurement.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PEERS = Path(__file__).resolve().parent
ROOT = PEERS.parent.parent
# And our bench.
SETS = {"train": "train_step", "infer": "inference", "adamw": "adamw", "similarity": "similarity", "loss": "multi_exit_loss"}
# Of a trained model.
SETS |= {"exits": "exit_speedup", "decode": "decode"}
CASES = ["vit_192", "vit_384_65", "vit_384_197", "bert_384", "gpt_256", "gpt_256_256", "gpt_256_50k"]
OBJECTIVES = ["standard", "aligned"]
ENGINES = ["eager", "compile", "onnx"]
EXIT_ENGINES = ["eager", "exits", "onnx"]
# Of the loss: width, vocabulary, exits, tokens. Logits of the largest fit nobody's memory but PyTorch's.
SIZES = {
    "gpt_256": {"width": 256, "vocabulary": 4096, "exits": 8, "tokens": 2048},
    "gpt_384": {"width": 384, "vocabulary": 50257, "exits": 6, "tokens": 1024},
    "gpt_768": {"width": 768, "vocabulary": 50257, "exits": 12, "tokens": 2048},
}
LOSS_FORMS = {"ours": "fused", "ours, no gradient": "forward", "ours, logits": "logits", "candle, AVX-512": "stock"}
LOSS_PEERS = {"PyTorch": "eager", "PyTorch, chunked": "chunked"}
STOCK = "candle"
CORES = sorted(os.sched_getaffinity(0))
WARMUP = 2
PATIENCE_S = 3600


def environment():
    """The Python of `target/peers`, which has what `requirements.txt` says."""
    folder, requirements = ROOT / "target" / "peers", PEERS / "requirements.txt"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-r", requirements], check=True, stdout=sys.stderr)
        stamp.write_text(requirements.read_text())
    return python


def build():
    """Builds our benches and returns their paths by name."""
    command = ["cargo", "bench", "--no-run", "--message-format", "json"]
    command += [word for bench in SETS.values() for word in ("--bench", bench)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    built = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable") and "bench" in m["target"]["kind"]}
    return {bench: built[bench] for bench in SETS.values()}


def build_stock():
    """Builds candle outside our workspace."""
    target = ROOT / "target" / "peers-candle"
    command = ["cargo", "build", "--release", "--manifest-path", PEERS / "stock_candle" / "Cargo.toml", "--target-dir", target]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return target / "release" / "stock_candle"


def programs(kind, benches, python):
    """The command of each program of a set, by name."""
    peer = [str(python), str(PEERS / "torch_case.py"), "--mode", "infer" if kind == "infer" else "train"]
    commands = {"ours": [benches[SETS[kind]], "--json"]}
    for engine in ENGINES if kind == "infer" else ENGINES[:1]:
        commands[engine] = [*peer, "--engine", engine]
    if kind == "adamw":
        commands["eager"] += ["--case", "adamw"]
    return commands


def similarity_programs(bench, python):
    """Debiased CKA of all pairs of 13 layers; of few pairs where one takes most of a minute."""
    peer = [str(python), str(PEERS / "similarity_case.py"), "--engine"]
    ours = [bench, "--json", "--form"]
    commands = {"ours": [*ours, "whole"], "ours, stream": [*ours, "stream"]}
    commands |= {name: [*peer, name] for name in ("numpy", "torch", "pytorch_cka")}
    commands["gram"] = [*peer, "gram", "--layers", "1"]
    commands["torch_cka"] = [*peer, "torch_cka", "--layers", "1"]
    small = ["--samples", "2000"]
    commands["ours, 2000 samples"] = [*ours, "whole", *small]
    commands["torch_cka, 2000 samples"] = [*peer, "torch_cka", *small]
    return commands


def loss_programs(bench, stock, python, size):
    """Ours, candle's and PyTorch's forms of the loss."""
    ours = {name: [bench, "--json", "--form", form] for name, form in LOSS_FORMS.items()}
    peers = {name: [str(python), str(PEERS / "loss_case.py"), "--form", form] for name, form in LOSS_PEERS.items()}
    if size == SIZES["gpt_768"]:
        ours = {name: command for name, command in ours.items() if name.startswith("ours") and "logits" not in name}
        return ours | peers
    return ours | {STOCK: [str(stock)]} | peers


def decode_programs(args, bench, python, prompts):
    """All of ours in one process, and transformers' on the same prompts; its drafts are one text at a time."""
    trained = ["--model", str(args.model)]
    peer = [str(python), str(PEERS / "decode_case.py"), *trained, "--prompts", str(prompts)]
    ours = [bench, "--json", *trained, "--text", str(args.data), "--dump", str(prompts)]
    return {"ours": ours, "transformers": peer, "transformers, drafts": [*peer, "--engine", "drafts"]}


def exit_programs(args, bench, python, inputs):
    """Ours with exits, and the peers on the same images."""
    trained = ["--model", str(args.model)]
    ours = [bench, "--json", *trained, "--data", str(args.data), "--images", str(args.images)]
    peer = [str(python), str(PEERS / "exit_case.py"), *trained, "--inputs", str(inputs), "--engine"]
    return {"ours": ours} | {engine: [*peer, engine] for engine in EXIT_ENGINES}


def dump(args, bench, inputs):
    """Writes the images and labels, as our bench prepares them."""
    command = [bench, "--json", "--model", str(args.model), "--data", str(args.data), "--images", str(args.images)]
    result = run([*command, "--rounds", "1", "--batch", "256", "--dump", str(inputs)], len(CORES))
    if "error" in result:
        sys.exit(f"the images cannot be written: {result['error']}")


def jobs(args):
    """What is compared: each a dictionary of the set and the options that programs share."""
    for threads in args.threads:
        for kind in args.sets:
            if kind in ("adamw", "similarity"):
                yield {"set": kind, "threads": threads}
            for size in args.sizes if kind == "loss" else []:
                yield {"set": kind, "threads": threads} | SIZES[size]
            for batch in args.batches if kind == "decode" else []:
                yield {"set": kind, "threads": threads, "batch": batch}
            for batch in args.batches if kind == "exits" else []:
                yield {"set": kind, "threads": threads, "batch": batch, "threshold": args.threshold}
            for case in args.cases if kind in ("train", "infer") else []:
                for choice in OBJECTIVES if kind == "train" else args.batches:
                    yield {"set": kind, "threads": threads, "case": case, "objective" if kind == "train" else "batch": choice}


def steps(job, least):
    """More timed steps for small batches, whose steps are short: 20, 7, 3 for batches of 1, 8, 64."""
    return max(least, round(20 / math.sqrt(job["batch"]))) if "batch" in job else least


def run(command, threads):
    """Runs one program on so many cores; its last line is a JSON object, `{"error": ..}` if it failed."""
    names = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    # candle's own pool spins: as .cargo/config.toml has it for everybody.
    env = os.environ | dict.fromkeys(names, str(threads)) | {"CANDLE_NUM_THREADS": "1", "MIMALLOC_PURGE_DELAY": "-1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=env,
            timeout=PATIENCE_S,
            preexec_fn=lambda: os.sched_setaffinity(0, CORES[-threads:]),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    try:
        result = json.loads(done.stdout.splitlines()[-1])
        if "error" in result or result["median_s"] > 0:
            return result
    except (IndexError, ValueError, KeyError, TypeError):
        pass
    return {"error": f"exit status {done.returncode}: {done.stderr.strip()[-2000:]}"}


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    git = subprocess.run(["git", "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return git.stdout.strip() or "unknown"


class Results:
    """All runs: each the job, the program's name and the round, and what the program printed."""

    def __init__(self):
        self.runs = []

    def rounds(self, name, job, value=lambda run: run["median_s"]):
        """A program's value in each round that it got through."""
        runs = [run for run in self.runs if run["program"] == name and run["job"] == job and "error" not in run["result"]]
        return {run["round"]: value(run["result"]) for run in runs}

    def memory(self, name, job):
        return self.rounds(name, job, lambda run: run["peak_rss_mib"] - run["base_rss_mib"])

    def limit(self, job, unit=1):
        limits = [limit for limit in self.rounds("ours", job, lambda run: run.get("limit_s")).values() if limit]
        return three(min(limits) * unit) if limits else "failed"

    def engines(self):
        return list(dict.fromkeys(run["result"]["engine"] for run in self.runs if "engine" in run["result"]))


def three(value):
    """Three digits that count."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def middle(rounds, unit=1):
    return three(statistics.median(rounds.values()) * unit) if rounds else "failed"


def mib(rounds):
    return f"{statistics.median(rounds.values()):.0f}" if rounds else "failed"


def ratio(ours, theirs, spread=True):
    ratios = [ours[round] / theirs[round] for round in ours if round in theirs]
    if not ratios:
        return "failed"
    cell = f"{statistics.median(ratios):.2f}"
    return f"{cell} ({min(ratios):.2f} to {max(ratios):.2f})" if spread else cell


def table(title, head, rows):
    print(f"\n{title}\n")
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(map(str, row)) + " |")


def print_training(results, args):
    rows, overheads = [], []
    for threads in args.threads:
        for case in args.cases:
            base = {"set": "train", "threads": threads, "case": case}
            for objective in OBJECTIVES:
                job = base | {"objective": objective}
                ours, theirs = (results.rounds(name, job) for name in ("ours", "eager"))
                memory = [results.memory(name, job) for name in ("ours", "eager")]
                cells = [middle(ours), middle(theirs), ratio(ours, theirs), results.limit(job)]
                rows.append([threads, case, objective, *cells, *map(mib, memory), ratio(*memory, spread=False)])
            standard, aligned = ({"objective": objective} | base for objective in OBJECTIVES)
            costs = [ratio(results.rounds(name, aligned), results.rounds(name, standard)) for name in ("ours", "eager")]
            overheads.append([threads, case, *costs])
    head = ["threads", "case", "objective", "ours, s", "PyTorch, s", "ours / PyTorch", "limit, s"]
    table("A training step", [*head, "peak memory: ours, MiB", "PyTorch, MiB", "ours / PyTorch"], rows)
    table("Aligned over standard", ["threads", "case", "ours", "PyTorch"], overheads)
    if len(args.threads) > 1:
        print_better(results, args)


def print_better(results, args):
    """Some programs lose by a second thread: each at its best number, as a user would run it."""
    rows = []
    for case in args.cases:
        for objective in OBJECTIVES:
            best = []
            for name in ("ours", "eager"):
                job = {"set": "train", "case": case, "objective": objective}
                each = [results.rounds(name, job | {"threads": threads}) for threads in args.threads]
                best.append({round: min(one[round] for one in each) for round in each[0] if all(round in one for one in each)})
            rows.append([case, objective, *map(middle, best), ratio(*best)])
    head = ["case", "objective", "ours, s", "PyTorch, s", "ours / PyTorch"]
    table("A training step, each at the better of its numbers of threads", head, rows)


def print_inference(results, args):
    rows = []
    for threads in args.threads:
        for case in args.cases:
            for batch in args.batches:
                job = {"set": "infer", "threads": threads, "case": case, "batch": batch}
                ours, *theirs = (results.rounds(name, job) for name in ["ours", *ENGINES])
                times = [middle(rounds, 1e3) for rounds in [ours, *theirs]]
                memory = " / ".join(mib(results.memory(name, job)) for name in ("ours", "eager", "onnx"))
                ratios = [ratio(ours, their) for their in theirs]
                rows.append([threads, case, batch, *times, *ratios, results.limit(job, 1e3), memory])
    head = ["threads", "case", "batch", "ours, ms", "PyTorch, ms", "torch.compile, ms", "ONNX Runtime, ms"]
    head += ["ours / PyTorch", "ours / torch.compile", "ours / ONNX Runtime", "limit, ms"]
    head.append("peak memory: ours / PyTorch / ONNX Runtime, MiB")
    table("Inference, last exit only", head, rows)


def print_adamw(results, args):
    rows = []
    for threads in args.threads:
        ours, theirs = (results.rounds(name, {"set": "adamw", "threads": threads}) for name in ("ours", "eager"))
        rows.append([threads, middle(ours, 1e3), middle(theirs, 1e3), ratio(ours, theirs)])
    table("AdamW alone, 20 parameters of 1000 x 1000", ["threads", "ours, ms", "PyTorch, ms", "ours / PyTorch"], rows)


def print_similarity(results, args):
    rows = []
    for threads in args.threads:
        job = {"set": "similarity", "threads": threads}
        runs = {run["program"]: run["result"] for run in results.runs if run["job"] == job and "error" not in run["result"]}
        for name, last in runs.items():
            ours = "ours, 2000 samples" if "2000" in name else "ours"
            pairs = last.get("of_pairs", 91)
            # Of a package that computes both orders of a pair, all 169; of few pairs, what all would take at that speed.
            whole = last["case"].startswith("13x")
            every = 1 if whole else (169 if name == "torch_cka" else 91) / pairs
            times = results.rounds(name, job, lambda run, every=every: run["median_s"] * every)
            memory = f"{last['peak_rss_mib'] - last['data_rss_mib']:.0f}"
            limit = results.limit(job) if name == "ours" else ""
            # One layer has no other, and the stream repeats one batch.
            score = f"{last['first_last']:.12f}" if whole and "stream" not in name else ""
            rows.append([threads, name, last["engine"], last["case"].split("x")[1], pairs, middle(results.rounds(name, job)),
                         middle(times), ratio(results.rounds(ours, job), times), limit, memory, score])
    head = ["threads", "program", "version", "samples", "pairs computed", "s", "s for all pairs", "ours / this", "limit, s"]
    head += ["memory above the data, MiB", "CKA(first, last)"]
    table("Debiased linear CKA of all pairs of 13 layers of width 768 (gram: biased)", head, rows)
    print("\nLimit: the upper triangle of X^T X of all layers side by side, in f64, at the speed of a square product of 2048.")


def print_exits(results, args):
    rows = []
    for threads in args.threads:
        for batch in args.batches:
            job = {"set": "exits", "threads": threads, "batch": batch, "threshold": args.threshold}
            ours, *theirs = (results.rounds(name, job, lambda run: run["median_s"] / run["images"]) for name in ["ours", *EXIT_ENGINES])
            full = results.rounds("ours", job, lambda run: 1 / run["full_per_s"])
            last = next((run["result"] for run in results.runs if run["job"] == job and run["program"] == "ours"), {})
            left = last.get("engines", {}).get("profitable", {})
            accuracy = [results.rounds(name, job, lambda run: run["accuracy"]) for name in EXIT_ENGINES]
            eager, exits, onnx = (next(iter(each.values()), math.nan) for each in accuracy)
            images = last.get("images", math.nan)
            for mine, their in [(last.get("full_accuracy", math.nan), eager), (left.get("accuracy", math.nan), exits), (eager, onnx)]:
                # One image may stand within rounding of a threshold, or between two classes.
                if not abs(mine - their) * images < 1.5:
                    print(f"accuracies differ at batch {batch}: {mine} and {their}", file=sys.stderr)
            shares = f"{100 * last.get('full_accuracy', math.nan):.1f}, {100 * left.get('accuracy', math.nan):.1f}"
            times = [middle(rounds, 1e3) for rounds in [full, ours, *theirs]]
            ratios = [ratio(ours, their) for their in theirs]
            rows.append([threads, batch, shares, f"{left.get('layer_ratio', math.nan):.2f}", *times, *ratios])
    head = ["threads", "batch", "accuracy full, with exits, %", "layer ratio", "ours full, ms an image", "ours with exits"]
    head += ["transformers full", "transformers with exits", "ONNX Runtime full"]
    head += [f"ours with exits / {name}" for name in ["transformers full", "transformers with exits", "ONNX Runtime full"]]
    table(f"Leaving early, largest probability above {args.threshold}, {args.images} images", head, rows)


def print_loss(results, args):
    rows = []
    for threads in args.threads:
        for size in args.sizes:
            job = {"set": "loss", "threads": threads} | SIZES[size]
            ours = results.rounds("ours", job)
            for name in [*LOSS_FORMS, STOCK, *LOSS_PEERS]:
                asked = any(run["program"] == name and run["job"] == job for run in results.runs)
                if not asked:
                    continue
                times = results.rounds(name, job)
                limits = results.rounds(name, job, lambda run: run.get("limit_s")).values() if name in LOSS_FORMS else []
                limit = three(min(limits)) if limits else ""
                memory = mib(results.rounds(name, job, lambda run: run["extra_mib"]))
                shape = f"{SIZES[size]['exits']} x {SIZES[size]['tokens']}, {SIZES[size]['width']}, {SIZES[size]['vocabulary']}"
                rows.append([threads, shape, name, middle(times), ratio(ours, times), limit, memory])
    head = ["threads", "exits x tokens, width, vocabulary", "program", "s", "ours / this", "limit, s"]
    table("The aligned loss of a large vocabulary, forward and backward", [*head, "memory beyond inputs and gradients, MiB"], rows)
    print("\nLimit: the three matrix products (without a gradient: one) at the speed of a square one of 1024, the best of the rounds.")


def print_decode(results, args):
    rows = []
    for threads in args.threads:
        for batch in args.batches:
            job = {"set": "decode", "threads": threads, "batch": batch}
            runs = [run["result"] for run in results.runs if run["job"] == job and run["program"] == "ours" and "error" not in run["result"]]
            ours = results.rounds("ours", job)
            for name in ("transformers", "transformers, drafts"):
                theirs = results.rounds(name, job)
                for run in (run["result"] for run in results.runs if run["job"] == job and run["program"] == name):
                    if runs and run.get("said", runs[0]["said"]) != runs[0]["said"]:
                        print(f"{name} says something else at batch {batch}", file=sys.stderr)
                if name == "transformers" or batch == 1:
                    speed = results.rounds(name, job, lambda run: run["tokens_per_s"])
                    rows.append([threads, batch, name, middle(speed), ratio(ours, theirs), "", "", "", ratio(ours, theirs)])
            for way in runs[0]["ways"] if runs else []:
                each = [run["ways"][way] for run in runs]
                over = [one["over_full"] for one in each]
                right, drafted = each[0]["acceptance"], each[0]["drafted"]
                share = f"{100 * right:.0f} % of {drafted}" if drafted else "none" if way.startswith("drafts") else ""
                speed = three(statistics.median(one["tokens_per_s"] for one in each))
                faster = f"{statistics.median(over):.2f} ({min(over):.2f} to {max(over):.2f})"
                same = "yes" if all(one["same_as_full"] for one in each) else "no"
                rows.append([threads, batch, way, speed, faster, f"{each[0]['layers']:.1f}", share, same, ""])
    head = ["threads", "batch", "way", "tokens/s", "speed / all layers", "layers a token", "drafts right", "same text as all layers"]
    table("Decoding, the likeliest token", [*head, "ours with all layers: time / transformers'"], rows)


def listed(choices):
    """An option's comma-separated names, each one of `choices`."""

    def parse(text):
        names = text.split(",")
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(choices)}")
        return names

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="a virtual environment to use as it is, instead of target/peers")
    everywhere = [kind for kind in SETS if kind not in ("exits", "decode")]
    parser.add_argument("--sets", type=listed(SETS), default=everywhere, help="of " + ",".join(SETS))
    parser.add_argument("--model", type=Path, help="for exits: folder of a trained ViT; for decode: of a trained GPT-2")
    parser.add_argument("--data", type=Path, help="for exits: folder of its data set; for decode: a text file")
    parser.add_argument("--sizes", type=listed(SIZES), default=list(SIZES), help="for loss: of " + ",".join(SIZES))
    parser.add_argument("--threshold", type=float, default=0.9, help="for exits")
    parser.add_argument("--images", type=int, default=1024, help="for exits: whole batches of held-out images")
    parser.add_argument("--cases", type=listed(CASES), default=CASES, help="of " + ",".join(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(CORES)}))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="for inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help=f"timed steps of each run, after {WARMUP} to warm up")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file, after each round")
    args = parser.parse_args()
    if {"exits", "decode"} & set(args.sets) and not (args.model and args.data):
        parser.error("exits and decode are of --model MODEL on --data DATA")

    python = args.venv / "bin" / "python" if args.venv else environment()
    benches = build()
    stock = build_stock() if "loss" in args.sets else None
    facts = {"commit": commit(), "processor": processor(), "load": os.getloadavg()[0]}
    results = Results()
    inputs = Path(tempfile.mkdtemp()) / "inputs.safetensors"
    if "exits" in args.sets:
        dump(args, benches["exit_speedup"], inputs)
    for round in range(args.rounds):
        for job in jobs(args):
            similarity = job["set"] == "similarity"
            if similarity:
                commands = similarity_programs(benches["similarity"], python)
            elif job["set"] == "exits":
                commands = exit_programs(args, benches["exit_speedup"], python, inputs)
            elif job["set"] == "loss":
                commands = loss_programs(benches["multi_exit_loss"], stock, python, {key: job[key] for key in SIZES["gpt_256"]})
            elif job["set"] == "decode":
                commands = decode_programs(args, benches["decode"], python, inputs.with_name(f"prompts{job['batch']}.json"))
                if job["batch"] > 1:
                    del commands["transformers, drafts"]
            else:
                commands = programs(job["set"], benches, python)
            options = [word for key, value in job.items() if key != "set" for word in (f"--{key}", str(value))]
            # What takes most of a minute is run once in a process.
            if similarity or job.get("width") == SIZES["gpt_768"]["width"]:
                options += ["--warmup", "0", "--rounds", "1"]
            elif job["set"] in ("exits", "loss", "decode"):
                options += ["--warmup", "1", "--rounds", str(args.steps)]
            else:
                options += ["--warmup", str(WARMUP), "--rounds", str(steps(job, args.steps))]
            print(f"round {round + 1} of {args.rounds}:", *job.values(), file=sys.stderr)
            # Ours writes the prompts that others continue.
            for name in list(commands) if round % 2 == 0 or job["set"] == "decode" else reversed(commands):
                result = run([*commands[name], *options], job["threads"])
                results.runs.append({"program": name, "job": job, "round": round, "result": result})
                if "error" in result:
                    print(f"{name} failed: {result['error'].strip()[-300:]}", file=sys.stderr)
        if args.json:
            args.json.write_text(json.dumps(facts | {"runs": results.runs}, indent=1) + "\n")

    print(f"`{facts['commit']}`, {facts['processor']}, {', '.join(results.engines())}, ", end="")
    print(f"load {facts['load']:.1f} at the start, {args.rounds} rounds", end="")
    print(f" of {args.steps} steps" if set(args.sets) != {"similarity"} else "")
    printers = {"train": print_training, "infer": print_inference, "adamw": print_adamw, "similarity": print_similarity}
    printers |= {"loss": print_loss, "exits": print_exits, "decode": print_decode}
    for kind in args.sets:
        printers[kind](results, args)
    if set(args.sets) & {"train", "infer"}:
        print("\nThe limit is the arithmetic of the matrix products at the speed of a square one of 1024, the best of the rounds.")
        print("Memory is the peak above what each process held before it made the model.")


if __name__ == "__main__":
    main()
