"""Tokens a second of transformers' `generate` with its cache, on the prompts of `benches/decode.rs`.

    python benches/peers/decode_case.py --model MODEL --prompts PROMPTS --batch 8 --threads 1

`PROMPTS` is what the bench's `--dump` has written: a list of lists of ids. Prints one JSON object. `--engine drafts` has the first layers draft as an assistant that shares their
weights, but not its cache, which is what transformers can do (`assistant_early_exit` does not shorten a GPT-2), one text at a time.
"""

import argparse
import json
import statistics
import sys
import traceback
from pathlib import Path

import torch
import transformers

from torch_case import add_device, measure, numbers, peak_device_mib, peak_rss_mib, use_torch


def assistant(model, layer, drafts):
    """The exit after `layer` as a model: the same weights."""
    config = transformers.GPT2Config(**model.config.to_dict() | {"n_layer": layer})
    first = transformers.GPT2LMHeadModel(config).eval()
    first.transformer.h = model.transformer.h[:layer]
    first.transformer.wte, first.transformer.wpe, first.transformer.ln_f = model.transformer.wte, model.transformer.wpe, model.transformer.ln_f
    first.lm_head = model.lm_head
    first.generation_config.num_assistant_tokens = drafts
    first.generation_config.num_assistant_tokens_schedule = "heuristic"
    assert len(first.transformer.h) == layer
    return first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained GPT-2")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--engine", choices=["eager", "drafts"], default="eager")
    parser.add_argument("--layer", type=int, default=2, help="for drafts: the exit that drafts")
    parser.add_argument("--drafts", type=int, default=6, help="for drafts: how many at first; then more or fewer as they are right")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    add_device(parser)
    args = parser.parse_args()
    use_torch(args)
    transformers.utils.logging.set_verbosity_error()
    try:
        base = peak_rss_mib()
        model = transformers.GPT2LMHeadModel.from_pretrained(args.model).eval().to(args.device, numbers(torch, args))
        prompts = json.loads(args.prompts.read_text())
        groups = [torch.tensor(prompts[i : i + args.batch], device=args.device) for i in range(0, len(prompts), args.batch)]
        how = {"do_sample": False, "max_new_tokens": args.tokens, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
        if args.engine == "drafts":
            how |= {"assistant_model": assistant(model, args.layer, args.drafts).to(args.device)}

        def step():
            return [model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].tolist() for ids in groups]

        with torch.inference_mode():
            seconds, said = measure(step, args)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    said = [ids for group in said for ids in group]
    print(json.dumps({
        "engine": f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
        "batch": args.batch,
        "threads": args.threads,
        "device": args.device,
        "dtype": args.dtype,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "tokens_per_s": sum(map(len, said)) / statistics.median(seconds),
        "said": said,
        "base_rss_mib": base,
        "peak_rss_mib": peak_rss_mib(),
        "peak_device_mib": peak_device_mib(args),
    }))


if __name__ == "__main__":
    main()
