"""One measurement of a peer: a training step, inference, or AdamW alone, of one of the cases in `models.py`.

    python benches/peers/torch_case.py --case vit_192 --mode train --objective aligned --threads 2
    python benches/peers/torch_case.py --case gpt_256 --mode infer --engine onnx --batch 8 --threads 2
    python benches/peers/torch_case.py --case adamw --threads 2
    python benches/peers/torch_case.py --case vit_384_197 --batch 256 --device cuda --dtype bf16

In bf16 training is `torch.autocast` over f32 parameters, inference of a bf16 model.
The last line it prints is a JSON object; one with the key `error` where the engine cannot do it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# PyTorch and `models` are imported where they are needed: the process that times ONNX Runtime does without them.


def peak_rss_mib():
    """Of this process alone, from Linux; `ru_maxrss` would carry over the launcher's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def peak_device_mib(args):
    """Of PyTorch's tensors on the GPU."""
    if on_gpu(args):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


def add_device(parser):
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=["f32", "tf32", "bf16"], default="f32", help="tf32: f32, of which a GPU multiplies ten bits")


def on_gpu(args):
    return args.device.startswith("cuda")


def finished(step, args):
    """What `step` gives, when it is there."""
    value = step()
    if on_gpu(args):
        import torch

        torch.cuda.synchronize()
    return value


def measure(step, args):
    """Seconds of each timed step, and what the last one returned."""
    for _ in range(args.warmup):
        finished(step, args)
    seconds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        value = finished(step, args)
        seconds.append(time.perf_counter() - start)
    return seconds, value


def use_torch(args):
    import torch

    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if args.dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = args.dtype == "tf32"
    if on_gpu(args):
        torch.cuda.set_device(torch.device(args.device).index or 0)
    return torch


def numbers(torch, args):
    """What tensors are of where nothing widens them."""
    return torch.bfloat16 if args.dtype == "bf16" else torch.float32


def served(torch, args):
    """The model for inference, and its inputs."""
    from models import CASES

    make, batch = CASES[args.case]
    args.batch = args.batch or batch
    with torch.device(args.device):
        model = make().eval().to(numbers(torch, args))
        inputs = model.inputs(args.batch)
    return model, [xs.to(numbers(torch, args)) if xs.is_floating_point() else xs for xs in inputs]


def adamw(torch, parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4, fused=True)


def time_adamw(args):
    """The optimiser's step alone: 20 parameters of 1000 x 1000."""
    torch = use_torch(args)
    base = peak_rss_mib()
    parameters = [torch.nn.Parameter(torch.randn(1000, 1000, device=args.device)) for _ in range(20)]
    for parameter in parameters:
        parameter.grad = torch.randn(1000, 1000, device=args.device)
    optimiser = adamw(torch, parameters)
    seconds, _ = measure(optimiser.step, args)
    return f"PyTorch {torch.__version__}", base, seconds, {}


def time_training(args):
    torch = use_torch(args)
    from models import CASES, OBJECTIVES

    base = peak_rss_mib()  # mostly the library itself
    make, batch = CASES[args.case]
    args.batch = args.batch or batch
    with torch.device(args.device):
        model = make().train()
        inputs, labels = model.inputs(args.batch), model.labels(args.batch)
    optimiser = adamw(torch, model.parameters())
    if args.engine == "compile":
        model = torch.compile(model)
    objective = OBJECTIVES[args.objective]

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = objective(model, inputs, labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    seconds, loss = measure(step, args)
    name = {"eager": "PyTorch", "compile": "torch.compile"}[args.engine]
    return f"{name} {torch.__version__}", base, seconds, {"loss": loss}


def time_inference(args):
    torch = use_torch(args)
    from models import LastExit

    base = peak_rss_mib()
    model, inputs = served(torch, args)
    model = LastExit(model)
    name = "PyTorch"
    if args.engine == "compile":
        name, model = "torch.compile", torch.compile(model)
    with torch.inference_mode():
        seconds, _ = measure(lambda: model(*inputs), args)
    return f"{name} {torch.__version__}", base, seconds, {}


def time_exits(args):
    """Samples leave after layers that are drawn, each as likely; heads are computed and read after every layer."""
    torch = use_torch(args)
    base = peak_rss_mib()
    model, inputs = served(torch, args)
    drawn = torch.randint(1, len(model.blocks) + 1, (args.batch,), device=args.device)

    def step():
        hidden, rows = model.embed(*inputs), torch.arange(args.batch, device=args.device)
        answers = hidden.new_empty(args.batch, model.classes)
        for number, block in enumerate(model.blocks, 1):
            hidden = block(hidden)
            logits = model.logits(hidden[:, 0])
            leaves = (logits.softmax(-1).amax(-1) > 1) | (drawn[rows] <= number)
            gone = leaves.nonzero().squeeze(1)
            answers[rows[gone]] = logits[gone]
            if len(gone) == len(rows):
                break
            kept = (~leaves).nonzero().squeeze(1)
            hidden, rows = hidden[kept], rows[kept]
        return answers

    with torch.inference_mode():
        seconds, _ = measure(step, args)
    return f"PyTorch {torch.__version__}", base, seconds, {}


def onnx_session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def export(args, folder):
    """Writes `model.onnx` and its `inputs.npz`, and checks that ONNX Runtime computes what PyTorch does.

    Both exporters of PyTorch give a graph of the same speed: `vit_384_65` at batch 8 on one thread took 103 and 104 ms
    from this one, 104 and 106 ms from the older (`dynamo=False`), medians of 25. Opset 20 is the first with GELU as one
    node. Opset 23 has attention as one too: 4 % faster in `bert_384`, 5 % slower in `vit_384_197`, and ONNX Runtime 1.32
    refuses a broadcast mask there.
    """
    torch = use_torch(args)
    import numpy
    from models import CASES, LastExit

    make, default = CASES[args.case]
    batch = args.batch or default
    model = LastExit(make()).eval()
    inputs = model.model.inputs(batch)
    torch.onnx.export(model, inputs, folder / "model.onnx", dynamo=True, opset_version=20, verbose=False)
    session = onnx_session(folder / "model.onnx", args.threads)
    feed = {node.name: xs.numpy() for node, xs in zip(session.get_inputs(), inputs, strict=True)}
    numpy.savez(folder / "inputs.npz", **feed)
    with torch.inference_mode():
        expected = model(*inputs).numpy()
    error = abs(session.run(None, feed)[0] - expected).max() / abs(expected).max()
    if not error < 1e-4:
        raise ValueError(f"ONNX Runtime's logits are {error:.1e} of their scale away from PyTorch's")
    return batch


def time_onnx(args):
    """Exports in a process of its own, so that this one's memory is ONNX Runtime's."""
    import numpy
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            args.batch = child.submit(export, args, folder).result()
        base = peak_rss_mib()
        session = onnx_session(folder / "model.onnx", args.threads)
        with numpy.load(folder / "inputs.npz") as inputs:
            feed = dict(inputs)
    seconds, _ = measure(lambda: session.run(None, feed), args)
    return f"ONNX Runtime {onnxruntime.__version__}", base, seconds, {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help="one of models.CASES, or adamw")
    parser.add_argument("--mode", choices=["train", "infer", "exits"], default="train", help="exits: of a ViT")
    parser.add_argument("--engine", choices=["eager", "compile", "onnx"], default="eager")
    parser.add_argument("--objective", choices=["standard", "aligned"], default="standard")
    parser.add_argument("--batch", type=int, help="default: the case's, for training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps")
    add_device(parser)
    args = parser.parse_args()
    if args.engine == "onnx" and (args.device, args.dtype) != ("cpu", "f32"):
        parser.error("onnx is measured on the CPU in f32")

    if args.case == "adamw":
        if (args.mode, args.engine) != ("train", "eager"):
            parser.error("adamw is of mode train and engine eager")
        measured = time_adamw
    elif args.mode == "train":
        if args.engine == "onnx":
            parser.error("onnx does not train")
        measured = time_training
    elif args.mode == "exits":
        if args.engine != "eager" or not args.case.startswith("vit"):
            parser.error("exits are of a ViT and of engine eager")
        measured = time_exits
    else:
        measured = time_onnx if args.engine == "onnx" else time_inference
    try:
        engine, base, seconds, more = measured(args)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    print(json.dumps({
        "engine": engine,
        "case": args.case,
        "mode": args.mode,
        "objective": args.objective if args.mode == "train" and args.case != "adamw" else None,
        "batch": args.batch,
        "threads": args.threads,
        "device": args.device,
        "dtype": args.dtype,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "base_rss_mib": base,
        "peak_rss_mib": peak_rss_mib(),
        "peak_device_mib": peak_device_mib(args),
        **more,
    }))


if __name__ == "__main__":
    main()
