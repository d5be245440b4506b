"""Writes the tables of `vision.md` from the results beside it, `vision/*/*.json`.

    python3 docs/experiments/tables.py            # rewrites what stands between `<!-- NAME -->` and `<!-- /NAME -->`
    python3 docs/experiments/tables.py --check    # fails when a table is not what the results say

Standard library only.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "vision.md"


def results(name):
    return json.loads((HERE / "vision" / f"{name}.json").read_text())


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


def runs():
    rows = []
    for path in sorted((HERE / "vision").glob("*/*.json")):
        run = json.loads(path.read_text())
        seeds = {name.rsplit("seed ", 1)[1] for name in run["models"] if "seed " in name} or {str(run["seed"])}
        machine = run["machine"]
        commit = run["commit"] or "-"
        commit = commit[:7] + commit[40:]  # `-dirty`, where files differed
        trained = [model["train_s"] for model in run["models"].values() if "train_s" in model]
        rows.append([
            f"[{path.parent.name}, `{path.stem}`](vision/{path.parent.name}/{path.name})", f"`{commit}`", len(seeds),
            f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores", f"{sum(trained) / 60:.0f}" if trained else "-", f"{run['wall_s'] / 60:.1f}",
        ])
    header = ["results", "commit", "seeds", "machine, threads", "minutes of training steps of its models", "minutes of the last call"]
    return table(header, rows)


SMALL, TUNED = "small", "finetuned"
TABLES = {
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
    "runs": (runs,),
}


def main():
    page = text = PAGE.read_text()
    for name, (make, *of) in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"{PAGE}: no <!-- {name} -->")
        text = pattern.sub(lambda match: match[1] + make(*of) + "\n" + match[2], text)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
    elif text != page:
        sys.exit(f"{PAGE}: a table is not what vision/*/*.json says; run {Path(__file__).name}")


if __name__ == "__main__":
    main()
