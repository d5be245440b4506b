"""One measurement of a peer on a trained ViT: the full model, or samples that leave where their largest probability is above a threshold.

    cargo bench --bench exit_speedup -- --json --model MODEL --data DATA --dump inputs.safetensors
    python benches/peers/exit_case.py --model MODEL --inputs inputs.safetensors --engine exits --batch 64 --threshold 0.9

The last line it prints is a JSON object; one with the key `error` where the engine cannot do it. `seconds` are those of a pass over all
images, in batches of `--batch`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import traceback
from pathlib import Path

from torch_case import add_device, measure, numbers, onnx_session, peak_device_mib, peak_rss_mib, use_torch


def load(args):
    torch = use_torch(args)
    from safetensors.torch import load_file
    from transformers import ViTForImageClassification

    exits = Path(args.model) / "layerwise.json"
    if exits.exists() and [json.loads(exits.read_text()).get(key, "shared") for key in ("exit_norm", "heads")] != ["shared"] * 2:
        raise ValueError(f"{exits}: only models with one norm and one head for all exits are measured here")
    model = ViTForImageClassification.from_pretrained(args.model, attn_implementation="sdpa").eval()
    model = model.to(args.device, numbers(torch, args))
    tensors = load_file(args.inputs)
    images, labels = tensors["images"].to(args.device, numbers(torch, args)), tensors["labels"].to(args.device)
    if len(images) % args.batch:
        raise ValueError(f"{len(images)} images are not whole batches of {args.batch}")
    return torch, model, images, labels


def run(torch, model, images, threshold):
    """Layer by layer; with a threshold heads after every layer, and rows that are sure are indexed out. One does it like this."""
    hidden = model.vit.embeddings(images)
    layers = model.vit.layers
    head = lambda hidden: model.classifier(model.vit.layernorm(hidden[:, 0]))
    if threshold is None:
        for layer in layers:
            hidden = layer(hidden, None)
        return head(hidden)
    answers = images.new_empty(len(images), model.config.num_labels)
    rows = torch.arange(len(images), device=images.device)
    for number, layer in enumerate(layers, 1):
        hidden = layer(hidden, None)
        logits = head(hidden)
        if number == len(layers):
            answers[rows] = logits
            break
        leaves = logits.softmax(-1).amax(-1) > threshold
        gone = leaves.nonzero().squeeze(1)
        if len(gone):
            answers[rows[gone]] = logits[gone]
            if len(gone) == len(rows):
                break
            kept = (~leaves).nonzero().squeeze(1)
            hidden, rows = hidden[kept], rows[kept]
    return answers


def time_torch(args):
    torch, model, images, labels = load(args)
    base = peak_rss_mib()

    threshold = args.threshold if args.engine == "exits" else None

    def step():
        return torch.cat([run(torch, model, batch, threshold) for batch in images.split(args.batch)])

    with torch.inference_mode():
        seconds, logits = measure(step, args)
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    import transformers

    return f"PyTorch {torch.__version__}, transformers {transformers.__version__}", base, seconds, (accuracy, len(labels))


def time_onnx(args):
    torch, model, images, labels = load(args)
    import onnxruntime

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(pixel_values=images).logits

    base = peak_rss_mib()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with torch.inference_mode():
            expected = model(pixel_values=images[: args.batch]).logits.numpy()
        torch.onnx.export(Logits().eval(), (images[: args.batch],), path, dynamo=True, opset_version=20, verbose=False)
        session = onnx_session(path, args.threads)
    (name,) = (node.name for node in session.get_inputs())
    batches = [batch.numpy() for batch in images.split(args.batch)]
    error = abs(session.run(None, {name: batches[0]})[0] - expected).max() / abs(expected).max()
    if not error < 1e-4:
        raise ValueError(f"ONNX Runtime's logits are {error:.1e} of their scale away from PyTorch's")
    seconds, answers = measure(lambda: [session.run(None, {name: batch})[0].argmax(-1) for batch in batches], args)
    right = sum(int((answer == label.numpy()).sum()) for answer, label in zip(answers, labels.split(args.batch), strict=True))
    return f"ONNX Runtime {onnxruntime.__version__}", base, seconds, (right / len(labels), len(labels))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained ViT")
    parser.add_argument("--inputs", required=True, help="what the bench's --dump has written")
    parser.add_argument("--engine", choices=["eager", "exits", "onnx"], default="eager")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1, help="passes before the clock starts")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes")
    add_device(parser)
    args = parser.parse_args()
    if args.engine == "onnx" and (args.device, args.dtype) != ("cpu", "f32"):
        parser.error("onnx is measured on the CPU in f32")
    try:
        engine, base, seconds, (accuracy, images) = (time_onnx if args.engine == "onnx" else time_torch)(args)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    print(json.dumps({
        "engine": engine,
        "batch": args.batch,
        "threads": args.threads,
        "device": args.device,
        "dtype": args.dtype,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "accuracy": accuracy,
        "images": images,
        "base_rss_mib": base,
        "peak_rss_mib": peak_rss_mib(),
        "peak_device_mib": peak_device_mib(args),
    }))


if __name__ == "__main__":
    main()
