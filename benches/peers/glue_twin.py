"""The recipe of `f07_aligned_bert` in PyTorch and transformers: the same checkpoint, samples, optimiser, schedule and batches of one length.

    python benches/peers/glue_twin.py --model minilm6 --data GLUE --task mrpc,rte --seeds 3 --threads 2
    python benches/peers/glue_twin.py --model minilm6 --data GLUE --task mrpc --objective aligned --threads 2

`GLUE` is the folder that `f07_aligned_bert` takes. For each task and seed it prints a JSON object: the score on the development part of
the exit after each layer, the mean of the task's metrics, and the seconds of each epoch's training steps. What differs from the example is the
generator: another classifier to start with, another order, other dropout.
"""

import argparse
import csv
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoConfig, BertForSequenceClassification, PreTrainedTokenizerFast, get_linear_schedule_with_warmup
from transformers.utils import logging

BATCH, DECAY, CLIP, WARMUP, TOKENS = 32, 0.01, 1.0, 0.1, 256
# Batches that are sorted by length together.
BUCKET = 50

YES = ["entailment", "not_entailment"]
CORRELATIONS = (lambda z, y: pearsonr(z, y).statistic, lambda z, y: spearmanr(z, y).statistic)
BOTH = (lambda z, y: f1_score(y, z), lambda z, y: accuracy_score(y, z))
ACCURACY = (lambda z, y: accuracy_score(y, z),)
# Columns of label and texts (by place where the file has no head), labels in order (none: a number), metrics.
TASKS = {
    "CoLA": ([1, 3], ["0", "1"], (lambda z, y: matthews_corrcoef(y, z),)),
    "SST-2": (["label", "sentence"], ["0", "1"], ACCURACY),
    "MRPC": (["Quality", "#1 String", "#2 String"], ["0", "1"], BOTH),
    "STS-B": (["score", "sentence1", "sentence2"], [], CORRELATIONS),
    "QQP": (["is_duplicate", "question1", "question2"], ["0", "1"], BOTH),
    "MNLI": (["gold_label", "sentence1", "sentence2"], ["entailment", "neutral", "contradiction"], ACCURACY),
    "QNLI": (["label", "question", "sentence"], YES, ACCURACY),
    "RTE": (["label", "sentence1", "sentence2"], YES, ACCURACY),
    "WNLI": (["label", "sentence1", "sentence2"], ["0", "1"], ACCURACY),
}


def samples(folder, task, part):
    """Targets and texts of the official part, or of the labelled sample of it."""
    official = f"{part}_matched" if (task, part) == ("MNLI", "dev") else part
    names = [name + end for name in (f"{official}.tsv", f"{part}-subset.tsv") for end in ("", ".gz")]
    path = next(folder / task / name for name in names if (folder / task / name).is_file())
    opened = gzip.open if path.suffix == ".gz" else open
    columns, labels, _ = TASKS[task]
    with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        rows = list(csv.reader((line.rstrip("\r\n") for line in file), delimiter="\t", quoting=csv.QUOTE_NONE))
    if isinstance(columns[0], str):
        head, *rows = rows
        columns = [head.index(name) for name in columns]
    if task == "QQP":
        # Some rows of the official files are cut short, and left out by others, too.
        rows = [row for row in rows if len(row) > max(columns)]
    target = (lambda word: labels.index(word)) if labels else float
    return [target(row[columns[0]]) for row in rows], [[row[at].strip() for row in rows] for at in columns[1:]]


def encoded(tokenizer, texts):
    ids = tokenizer(*texts, truncation="longest_first", max_length=TOKENS, return_token_type_ids=True)
    return [{"input_ids": a, "token_type_ids": b} for a, b in zip(ids["input_ids"], ids["token_type_ids"])]


def padded(tokenizer, texts):
    return dict(tokenizer.pad(texts, return_tensors="pt"))


def order(lengths):
    """Batches of about one length, in an order of chance."""
    drawn = torch.randperm(len(lengths)).tolist()
    whole = len(drawn) // BATCH * BATCH
    batches = []
    for start in range(0, whole, BUCKET * BATCH):
        part = sorted(drawn[start : min(start + BUCKET * BATCH, whole)], key=lengths.__getitem__)
        batches += [part[at : at + BATCH] for at in range(0, len(part), BATCH)]
    shuffled = [batches[at] for at in torch.randperm(len(batches)).tolist()]
    return shuffled + ([drawn[whole:]] if whole < len(drawn) else [])


def exits(model, inputs):
    """What the shared pooler and classifier say after each layer: `(layers, samples, classes)`."""
    states = torch.stack(model.bert(**inputs, output_hidden_states=True).hidden_states[1:])
    return model.classifier(model.dropout(model.bert.pooler.activation(model.bert.pooler.dense(states[:, :, 0]))))


def loss(model, inputs, targets, aligned):
    of = (lambda z: cross_entropy(z, targets)) if targets.dtype == torch.int64 else (lambda z: mse_loss(z[:, 0], targets))
    if not aligned:
        return of(model(**inputs).logits)
    answers = exits(model, inputs)
    depth = len(answers)
    return sum(2 * layer / (depth * (depth + 1)) * of(z) for layer, z in enumerate(answers, start=1))


def prior(targets, classes):
    """What the classifier starts with: the logarithm of how often each class is, or the mean of the numbers."""
    if classes == 1:
        return torch.tensor([sum(targets) / len(targets)])
    counts = 1 + torch.bincount(torch.tensor(targets), minlength=classes)
    return (counts / counts.sum()).log()


def decays(name, parameter):
    return parameter.ndim > 1 and "LayerNorm" not in name and "embeddings" not in name


def tuned(args, task, seed, tokenizer, parts):
    (targets, texts), (held_out_targets, held_out) = parts
    torch.manual_seed(seed)
    classes = max(1, len(TASKS[task][1]))
    model = BertForSequenceClassification.from_pretrained(args.model, num_labels=classes).train()
    with torch.no_grad():
        model.classifier.bias.copy_(prior(targets, classes))
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": DECAY},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    steps = args.epochs * math.ceil(len(texts) / BATCH)
    schedule = get_linear_schedule_with_warmup(optimiser, round(WARMUP * steps), steps)
    lengths = [len(text["input_ids"]) for text in texts]
    all_targets = torch.tensor(targets, dtype=torch.int64 if classes > 1 else torch.float32)
    seconds = []
    for _ in range(args.epochs):
        start = time.perf_counter()
        for rows in order(lengths):
            optimiser.zero_grad()
            loss(model, padded(tokenizer, [texts[row] for row in rows]), all_targets[rows], args.objective == "aligned").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)
    model.eval()
    with torch.no_grad():
        chunks = [held_out[at : at + 64] for at in range(0, len(held_out), 64)]
        answers = torch.cat([exits(model, padded(tokenizer, chunk)) for chunk in chunks], 1)
    said = answers.argmax(-1) if classes > 1 else answers[..., 0]
    score = lambda z: float(np.mean([metric(z.numpy(), np.array(held_out_targets)) for metric in TASKS[task][2]]))
    return {"steps": steps, "epoch_seconds": seconds, "score": [score(z) for z in said]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="all")
    parser.add_argument("--objective", choices=["standard", "aligned"], default="standard")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--train-limit", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    pad = AutoConfig.from_pretrained(args.model).pad_token_id
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.model / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    plain = lambda name: name.replace("-", "").lower()
    asked = [plain(name) for name in args.task.split(",")]
    for task in [task for task in TASKS if args.task == "all" or plain(task) in asked]:
        (targets, texts), held_out = samples(args.data, task, "train"), samples(args.data, task, "dev")
        train = targets[: args.train_limit], encoded(tokenizer, [text[: args.train_limit] for text in texts])
        parts = train, (held_out[0], encoded(tokenizer, held_out[1]))
        for seed in range(args.seed, args.seed + args.seeds):
            result = tuned(args, task, seed, tokenizer, parts)
            fixed = {"model": args.model.name, "task": task, "objective": args.objective, "seed": seed, "lr": args.lr,
                     "threads": args.threads, "torch": torch.__version__}
            print(json.dumps(fixed | result), flush=True)


if __name__ == "__main__":
    main()
