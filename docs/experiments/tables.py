"""Writes the tables of `vision.md`, `exits.md`, `glue.md` and `language.md` from the results beside them, in the folders of the same names.

    python3 docs/experiments/tables.py            # rewrites what stands between `<!-- NAME -->` and `<!-- /NAME -->`
    python3 docs/experiments/tables.py --check    # fails when a table is not what the results say

Standard library only.
"""

import json
import re
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent


def results(name):
    return json.loads((HERE / "vision" / f"{name}.json").read_text())


def exits(name):
    """One result, or those of a file of lines."""
    path = HERE / "exits" / name
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def percent(share):
    return "-" if share is None else f"{100 * share:.1f}"


def hundredths(value):
    return "-" if value is None else f"{value:.2f}"


def table(header, rows):
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def layers(run, columns):
    """A row a layer; columns are (heading, model, key, how a number is written)."""
    values = [run["models"][model][key] for _, model, key, _ in columns]
    rows = [
        [layer + 1, *(write(curve[layer]) for curve, (*_, write) in zip(values, columns))]
        for layer in range(max(map(len, values)))
    ]
    return table(["layer", *(heading for heading, *_ in columns)], rows)


def side_by_side(run, names):
    """Accuracy and COS of all models."""
    accuracy = [(f"acc. {name}", name, "accuracy", percent) for name in names]
    return layers(run, accuracy + [(f"COS {name}", name, "cos_to_last", hundredths) for name in names])


TRAININGS = ["standard", "aligned", "multi-exit"]


def f03(name):
    return side_by_side(results(name), TRAININGS)


def f03_inside(name):
    run = results(name)
    nc1 = [(f"NC1 {model}", model, "nc1", hundredths) for model in TRAININGS]
    return layers(run, nc1 + [(f"probe {model}", model, "probe", percent) for model in TRAININGS])


def f03_parameters(name):
    models = results(name)["models"]
    rows = [[model, models[model]["parameters"], models[model]["exit_parameters"]] for model in TRAININGS]
    return table(["training", "parameters", "of inner exits"], rows)


def f04(name):
    run = results(name)
    own = {len(model["accuracy"]): model["accuracy"][-1] for name, model in run["models"].items() if name != "aligned"}
    rows = [
        [cut["depth"], percent(own.get(cut["depth"])), percent(cut["accuracy"]), cut["bytes"]] for cut in run["cuts"]
    ]
    return table(["depth", "trained at it, standard", "aligned, cut there", "bytes of the file"], rows)


def f04_minimal(name):
    found = results(name)["minimal_depth"]
    rows = [[points, *found[points]] for points in sorted(found, key=float)]
    return table(["points below the model's best layer", "standard", "aligned"], rows)


def f05(name):
    exits = results(name)["exits"]
    by = {(exit["model"], exit["threshold"]): exit for exit in exits}
    thresholds = sorted({exit["threshold"] for exit in exits})
    header = ["threshold", *(f"{model}: acc., layers, time" for model in TRAININGS)]
    cell = lambda exit: f"{percent(exit['accuracy'])}, {exit['layer_ratio']:.2f}x, {exit['wall_ratio']:.2f}x"
    return table(header, [[at, *(cell(by[model, at]) for model in TRAININGS)] for at in thresholds])


def f06(name):
    run, models = results(name), ["standard", "aligned"]
    keys = [key for key in ["familiar", "shifted", "source", "probe"] if key in run["models"]["aligned"]]
    return layers(run, [(f"{key}, {model}", model, key, percent) for key in keys for model in models])


def f12(name):
    run = results(name)
    rows = [
        [
            depth["depth"], percent(depth["accuracy"]), f"{depth['bytes'] / 1e6:.2f}", f"{depth['memory_mib']:.1f}",
            f"{depth['latency_ms']:.2f}", f"{depth['batch_latency_ms']:.1f}",
        ]
        for depth in run["depths"]
    ]
    return table(["depth", "accuracy", "file, MB", "memory, MiB", "1 image, ms", "64 images, ms"], rows)


def f13(name):
    run = results(name)
    regularised = sorted((model for model in run["models"] if model.startswith("CE-reg")), key=lambda model: float(model[7:]))
    return side_by_side(run, ["standard", *regularised, "aligned"])


def objectives(name):
    run = results(name)["objectives"]
    rows = [
        [
            objective, percent(of["last"]), percent(of["last_deviation"]), percent(of["half"]),
            f"{100 * (of['last'] - of['half']):.1f}", percent(of["area"]),
        ]
        for objective, of in sorted(run.items(), key=lambda item: -item[1]["area"])
    ]
    return table(["objective", "last layer", "+-", "layer L/2", "last - L/2", "mean of layers"], rows)


def speed(name):
    rows = []
    for run in exits(name):
        engines = {engine: report["wall_ratio"] for engine, report in run["engines"].items()}
        left = run["engines"]["profitable"]
        pools = run.get("pools")
        rows.append([
            run["batch"], f"{100 * (run['full_accuracy'] - left['accuracy']):.1f}", hundredths(left["layer_ratio"]),
            hundredths(run["flop_ratio"]), hundredths(engines["profitable"]), f"{100 * engines['profitable'] / left['layer_ratio']:.0f} %",
            hundredths(engines["always"]), hundredths(engines["never"]), f"{run['cut_at']}: {hundredths(engines['cut'])}",
            f"{pools['samples_per_s']:.0f}, {100 * pools['over_batches']:.0f} %" if pools else "",
        ])
    header = ["batch", "points lost", "layers", "operations", "time", "of the layers", "always compacted", "never", "cut at", "pools, images/s and share of batches"]
    return table(header, rows)


def overhead(name):
    """Time without exits over time with them; a row a threshold."""
    runs = exits(name)
    batches = sorted({run["batch"] for run in runs})
    by = {(run["threshold"], run["batch"]): run for run in runs}
    rows = [
        [at, *(f"{by[at, batch]['engines']['profitable']['wall_ratio']:.3f} ({by[at, batch]['full_over_full']:.3f})" for batch in batches)]
        for at in sorted({run["threshold"] for run in runs})
    ]
    return table(["threshold", *(f"batch {batch}" for batch in batches)], rows)


def signals(name):
    compared = exits(name)["signals"]
    full = compared[0]["accuracy"]
    rows = [
        [of["name"], hundredths(of["layers"]), f"{of['predicted_ms']:.3f}", percent(of["accuracy"]), hundredths(100 * (full - of["accuracy"])), hundredths(100 * of["disagreement"])]
        for of in compared
    ]
    return table(["signal", "layers", "predicted ms an image", "accuracy", "points lost", "answered otherwise, %"], rows)


def tolerances(name):
    run = exits(name)
    full = run["signals"][0]["accuracy"]
    lost = lambda of: hundredths(100 * (full - of["accuracy"]))
    rows = [
        [of["points"], hundredths(of["promised"]["layers"]), lost(of["promised"]), hundredths(of["plain"]["layers"]), lost(of["plain"])]
        for of in run["tolerances"]
    ]
    return table(["tolerance, points", "layers, promised", "points lost", "layers, plain threshold", "points lost"], rows)


def splits(name):
    rows = []
    for of in exits(name)["splits"]:
        share = lambda key: f"{100 * of[key] / of['splits']:.1f}"
        rows.append([
            of["risk"], of["test"].replace("_", " "), f"{100 * of['tolerance']:g}", of["delta"], share("broken"), share("seen_broken"),
            share("plain_broken"), hundredths(of["layers"]), hundredths(of["plain_layers"]),
        ])
    header = ["risk", "test", "tolerance, points", "delta", "broken, %", "halves: above, %", "halves, plain threshold: above, %", "layers", "layers, plain threshold"]
    return table(header, rows)


def shift(name):
    run = exits(name)
    of, chosen, full = run["shift"], run["chosen"]["test"], run["signals"][0]["accuracy"]

    def alarms(of):
        after = "" if of["median_until_alarm"] is None else f", after {of['median_until_alarm']:,} (median)"
        return f"{of['alarms']} of {of['monitors']}{after}"

    familiar, other = (alarms(of) for of in of["monitors"])
    rows = [
        ["test images of CIFAR-10", percent(full), percent(chosen["accuracy"]), hundredths(100 * (full - chosen["accuracy"])), "", hundredths(100 * chosen["disagreement"]), familiar],
        [f"{of['samples']:,} of Tiny ImageNet", percent(of["full_accuracy"]), percent(of["accuracy"]), hundredths(100 * (of["full_accuracy"] - of["accuracy"])), hundredths(100 * of["harmed"]), hundredths(100 * of["disagreement"]), other],
    ]
    return table(["images", "accuracy, full", "with exits", "points lost", "right answers lost, %", "answered otherwise, %", f"alarms of monitors of a rate above {100 * of['tolerance']:.2f} %"], rows)


def load(name):
    run = exits(name)
    rows = [
        [told, f"{of['requests_per_s']:.0f}", *(f"{of[key]:.0f}" for key in ["p50_ms", "p95_ms", "p99_ms"]), hundredths(of["layers"]), percent(of["accuracy"])]
        for told, of in [("without exits", run["without_exits"]), ("with exits", run["with_exits"])]
    ]
    return table(["", "requests/s", "p50, ms", "p95, ms", "p99, ms", "layers", "accuracy"], rows)


def soak(name):
    run = exits(name)
    rows = [[f"requests: {doing}", count] for doing, count in run["requests"].items()]
    rows += [[f"server: {key}", count] for key, count in run["server"].items()]
    rows += [[f"good requests: {key}, ms", f"{run['latency_ms'][key]:.0f}"] for key in ["p50", "p95", "p99", "longest"]]
    memory = run["memory_mib"]
    rows.append(["memory, median of the first and of the second half, MiB", f"{memory['first_half']:.0f}, {memory['second_half']:.0f}"])
    rows.append(["answers after another layer than before", run["other_layer"]])
    rows.append(["wrong, lost or double", len(run["wrong"])])
    return table(["", ""], rows)


def glue(at):
    """Tasks of all results of a checkpoint, and their trainings by name: a list of seeds for each."""
    tasks = {}
    for path in sorted((HERE / "glue" / at).glob("*.json")):
        run = json.loads(path.read_text())
        for task, entry in run["tasks"].items():
            for seeds in entry["models"]:
                numbered = [of | {"seed": seed} for seed, of in enumerate(seeds, start=run["seed"])]
                tasks.setdefault(task, {}).setdefault(seeds[0]["name"], []).extend(numbered)
    by_seed = lambda seeds: sorted(seeds, key=lambda of: of["seed"])
    return {task: {name: by_seed(tasks[task][name]) for name in GLUE_TRAININGS if name in tasks[task]} for task in GLUE if task in tasks}


def mean(seeds, key, of_values=statistics.mean):
    return [of_values(values) for values in zip(*(of[key] for of in seeds))]


def glue_layers(at, key, write):
    rows = [[task, name, len(seeds), *map(write, mean(seeds, key))] for task, models in glue(at).items() for name, seeds in models.items()]
    return table(["task", "training", "seeds", *range(1, len(rows[0]) - 2)], rows)


def glue_claim(at):
    """What the paper says of aligned models, task by task, of the seeds that both were trained with."""
    rows = []
    for task, models in glue(at).items():
        both = {of["seed"] for of in models["standard"]} & {of["seed"] for of in models["aligned"]}
        standard, aligned = (mean([of for of in models[name] if of["seed"] in both], "score") for name in ("standard", "aligned"))
        inner = [round(100 * (a - b), 6) for a, b in zip(aligned[:-1], standard[:-1])]
        counts = [sum(d > 0 for d in inner), sum(d == 0 for d in inner), sum(d < 0 for d in inner)]
        near = lambda score: next(layer for layer, value in enumerate(score, start=1) if value >= score[-1] - 0.02)
        rows.append([task, len(both), " / ".join(map(str, counts)), f"{statistics.mean(inner):+.1f}", f"{100 * (aligned[-1] - standard[-1]):+.1f}", near(standard), near(aligned)])
    header = ["task", "seeds", "inner layers above / equal / below", "mean of inner layers, points", "last layer, points"]
    return table([*header, "first layer within 2 points of the last: standard", "aligned"], rows)


def glue_exits(at):
    rows = []
    for task, models in glue(at).items():
        for name, seeds in models.items():
            for exits in seeds[0]["exits"]:
                cheap = [exit for exit in exits["leaving"] if exits["full"] - exit["score"] <= 0.01 + 1e-12]
                if not cheap:
                    continue
                best = max(cheap, key=lambda exit: exit["layer_ratio"])
                rows.append([task, name, exits["signal"], best["from"], percent(exits["full"]), percent(best["score"]), hundredths(best["layer_ratio"])])
    return table(["task", "training", "leaves by", "from layer", "score without exits", "with exits", "layers, times fewer"], rows)


def lines_of(path):
    return [json.loads(line) for line in (HERE / "glue" / path).read_text().splitlines() if line.startswith("{")]


def glue_time(at):
    rows = []
    for of in lines_of(f"{at}/time.jsonl"):
        mine, theirs = list(of["ours"].values()), list(of["PyTorch"].values())
        ratios = [a / b for a, b in zip(mine, theirs)]
        middle = [statistics.median(values) for values in (mine, theirs, ratios)]
        rows.append([of["threads"], of["task"], of["objective"], f"{middle[0]:.1f}", f"{middle[1]:.1f}", f"{middle[2]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"])
    return table(["threads", "task", "objective", "ours, s", "PyTorch, s", "ours / PyTorch"], rows)


def spread(scores):
    deviation = f" (sd {100 * statistics.stdev(scores):.1f})" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{deviation}: {', '.join(map(percent, scores))}"


def glue_twin(at):
    """The last layer's scores of all seeds, here and in PyTorch."""
    ours, theirs = glue(at), {}
    for of in lines_of(f"{at}/pytorch.jsonl"):
        theirs.setdefault((of["task"], of["objective"]), []).append(of["score"][-1])
    rows = []
    for (task, objective), scores in sorted(theirs.items(), key=lambda row: (GLUE.index(row[0][0]), row[0][1])):
        mine = [seed["score"][-1] for seed in ours.get(task, {}).get(objective, [])]
        if mine:
            difference = 100 * (statistics.mean(mine) - statistics.mean(scores))
            rows.append([task, objective, spread(mine), spread(scores), f"{difference:+.1f}"])
    return table(["task", "training", "ours: mean, seeds", "PyTorch: mean, seeds", "points"], rows)


LANGUAGE_TRAININGS = ["standard", "aligned", "alternating", "mixed", "mixed, rotating", "standard first"]


def language():
    """Trainings of the small recipe by name: a list of seeds, from 0 on, for each."""
    models = {name: [] for name in LANGUAGE_TRAININGS}
    for path in sorted((HERE / "language" / "small").glob("*.json")):
        run = json.loads(path.read_text())
        for seeds in run["language_models"]:
            models[seeds[0]["name"]].extend(enumerate(seeds, start=run["seed"]))
    in_order = lambda seeds: [of for _, of in sorted(seeds, key=lambda seed: seed[0])]
    return {name: in_order(seeds) for name, seeds in models.items() if seeds}


def language_layers(key, write, of_seeds=statistics.mean):
    rows = [[name, len(seeds), *map(write, mean(seeds, key, of_seeds))] for name, seeds in language().items()]
    return table(["training", "seeds", *range(1, len(rows[0]) - 1)], rows)


def language_said(key):
    rows = [[name, *map(hundredths, mean([of["said"] for of in seeds], key))] for name, seeds in language().items()]
    return table(["training", *range(1, len(rows[0]))], rows)


def language_saturation():
    """Shares of tokens whose answer does not change from a layer on."""
    rows = []
    for name, seeds in language().items():
        counts = [sum(values) for values in zip(*(of["saturation"] for of in seeds))]
        rows.append([name, *(percent(count / sum(counts)) for count in counts)])
    return table(["training", *range(1, len(rows[0]))], rows)


def language_trade():
    """The last layer beside standard training's, the middle one beside aligned training's, of as many seeds."""
    models = language()
    of = lambda name, layer, seeds: statistics.geometric_mean(seed["perplexity"][layer] for seed in models[name][:seeds])
    last, middle = -1, len(models["standard"][0]["perplexity"]) // 2 - 1
    rows = []
    for name in models:
        each = lambda layer, name=name: ", ".join(f"{seed['perplexity'][layer]:.0f}" for seed in models[name])
        over = lambda layer, other, name=name, n=len(models[name]): of(name, layer, n) / of(other, layer, n)
        rows.append([
            name, each(last), hundredths(over(last, "standard")), each(middle), hundredths(over(middle, "aligned")),
        ])
    return table(["training", "last layer, seeds", "times standard's", f"layer {middle + 1}, seeds", "times aligned's"], rows)


def seeds_of(run):
    if "language_models" in run:
        return max(map(len, run["language_models"]))
    if "tasks" in run:
        return max(len(seeds) for task in run["tasks"].values() for seeds in task["models"])
    return len({name.rsplit("seed ", 1)[1] for name in run["models"] if "seed " in name} or {str(run["seed"])})


def models_of(run):
    tasks = run.get("tasks", {}).values()
    of_tasks = [model for task in tasks for seeds in task["models"] for model in seeds]
    return [*run["models"].values(), *of_tasks, *(model for seeds in run.get("language_models", []) for model in seeds)]


def runs(pages):
    rows = []
    for path in sorted((HERE / pages).glob("*/*.json")):
        run = json.loads(path.read_text())
        machine = run["machine"]
        commit = run["commit"] or "-"
        commit = commit[:7] + commit[40:]  # `-dirty`, where files differed
        trained = [model["train_s"] for model in models_of(run) if "train_s" in model]
        rows.append([
            f"[{path.parent.name}, `{path.stem}`]({pages}/{path.parent.name}/{path.name})", f"`{commit}`", seeds_of(run),
            f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores", f"{sum(trained) / 60:.0f}" if trained else "-", f"{run['wall_s'] / 60:.1f}",
        ])
    header = ["results", "commit", "seeds", "machine, threads", "minutes of training steps of its models", "minutes of the last call"]
    return table(header, rows)


SMALL, TUNED = "small", "finetuned"
VISION = {
    **{f"f03 {at}": (f03, f"{at}/f03_three_trainings") for at in [SMALL, TUNED]},
    **{f"f03 inside {at}": (f03_inside, f"{at}/f03_three_trainings") for at in [SMALL, TUNED]},
    "f03 parameters": (f03_parameters, f"{SMALL}/f03_three_trainings"),
    **{f"f04 {at}": (f04, f"{at}/f04_minimal_depth") for at in [SMALL, TUNED]},
    **{f"f04 minimal {at}": (f04_minimal, f"{at}/f04_minimal_depth") for at in [SMALL, TUNED]},
    **{f"f05 {at}": (f05, f"{at}/f05_early_exit") for at in [SMALL, TUNED]},
    **{f"f06 {at}": (f06, f"{at}/f06_shift_and_transfer") for at in [SMALL, TUNED]},
    **{f"f12 {at}": (f12, f"{at}/f12_elastic") for at in [SMALL, TUNED]},
    "f13": (f13, f"{SMALL}/f13_cosine_regulariser"),
    **{f"objectives {at}": (objectives, f"{at}/objectives") for at in [SMALL, TUNED]},
    "runs": (runs, "vision"),
}
EXITS = {
    **{f"speed {at}": (speed, f"{at}/speed.jsonl") for at in [SMALL, TUNED]},
    **{f"overhead {at}": (overhead, f"{at}/overhead.jsonl") for at in [SMALL, TUNED]},
    **{f"signals {at}": (signals, f"{at}/calibrate.json") for at in [SMALL, TUNED]},
    **{f"tolerances {at}": (tolerances, f"{at}/calibrate.json") for at in [SMALL, TUNED]},
    **{f"splits {at}": (splits, f"{at}/calibrate.json") for at in [SMALL, TUNED]},
    **{f"shift {at}": (shift, f"{at}/calibrate.json") for at in [SMALL, TUNED]},
    "load": (load, f"{TUNED}/load.json"),
    "soak": (soak, f"{TUNED}/soak.json"),
    "runs": (runs, "exits"),
}
GLUE = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
GLUE_TRAININGS = ["standard", "aligned", "alternating", "multi-exit"]
CHECKPOINTS = ["minilm6", "minilm6-mean", "bert12", "bert12-mean"]
GLUE_PAGE = {
    **{f"scores {at}": (glue_layers, at, "score", percent) for at in CHECKPOINTS},
    **{f"cos {at}": (glue_layers, at, "cos_to_last", hundredths) for at in CHECKPOINTS},
    **{f"claim {at}": (glue_claim, at) for at in CHECKPOINTS},
    **{f"exits {at}": (glue_exits, at) for at in CHECKPOINTS},
    "pytorch minilm6": (glue_twin, "minilm6"),
    "time": (glue_time, "minilm6"),
    "runs": (runs, "glue"),
}
LANGUAGE = {
    "trade": (language_trade,),
    "perplexity": (language_layers, "perplexity", lambda value: f"{value:.0f}", statistics.geometric_mean),
    "accuracy": (language_layers, "accuracy", percent),
    "cos": (language_layers, "cos_to_last", hundredths),
    "agreement": (language_layers, "agreement", percent),
    "saturation": (language_saturation,),
    "coherence": (language_said, "coherence"),
    "diversity": (language_said, "diversity"),
    "runs": (runs, "language"),
}
PAGES = {"vision.md": VISION, "exits.md": EXITS, "glue.md": GLUE_PAGE, "language.md": LANGUAGE}


def main():
    for name, tables in PAGES.items():
        path = HERE / name
        page = text = path.read_text()
        for marker, (make, *of) in tables.items():
            pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
            if not pattern.search(text):
                sys.exit(f"{path}: no <!-- {marker} -->")
            text = pattern.sub(lambda match: match[1] + make(*of) + "\n" + match[2], text)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif text != page:
            sys.exit(f"{path}: a table is not what its results say; run {Path(__file__).name}")


if __name__ == "__main__":
    main()
