"""What the first token of a pretrained BERT knows of its text, layer by layer, before anybody has fine-tuned it.

    python benches/peers/first_token.py --model minilm6 --data GLUE/SST-2/dev.tsv.gz

For each layer, of the first 64 texts of a column: how far states are from their mean over texts, relative to that mean (the spread of the first token, and of the
mean of all tokens), and what the first token attends to: itself, the last token, all others. transformers' model and attention.
"""

import argparse
import csv
import gzip

import torch
from transformers import AutoModel, PreTrainedTokenizerFast

TEXTS = 64


def spread(states):
    """How far rows are from their mean, relative to it."""
    middle = states.mean(0)
    return ((states - middle).square().sum(-1).mean().sqrt() / middle.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a TSV file of GLUE, plain or gzipped")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--pad", default="[PAD]", help="the tokenizer's name for padding")
    args = parser.parse_args()
    opened = gzip.open if args.data.endswith(".gz") else open
    with opened(args.data, "rt", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [row[args.column] for row, _ in zip(rows, range(TEXTS))]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{args.model}/tokenizer.json", pad_token=args.pad)
    model = AutoModel.from_pretrained(args.model, attn_implementation="eager").float().eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    every, last = torch.arange(len(ids)), mask.sum(1) - 1
    print("| layer | spread of the first token | of the mean of all | the first token attends to itself | to the last | to others |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layer, (states, attention) in enumerate(zip(out.hidden_states[1:], out.attentions), start=1):
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        first = attention[:, :, 0]
        itself, end = first[:, :, 0].mean().item(), first[every, :, last].mean().item()
        shares = " | ".join(f"{share:.2f}" for share in (itself, end, 1 - itself - end))
        print(f"| {layer} | {spread(states[:, 0]):.3f} | {spread(mean):.3f} | {shares} |")


if __name__ == "__main__":
    main()
