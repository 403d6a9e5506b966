#!/usr/bin/env python3
"""Fine-tunes and runs SmolLM2-135M with transformers + peft: what gaisnet's own engine is held against.

What it shows: seconds a step and the loss of each step for LoRA on q and v, peak memory, and tokens a
second of greedy generation, as one JSON object. Both sides read one *work file*, so that they see the
same tokens and start from the same LoRA factors.

How to run it:

    benches/peers/make-venv                                          # once, 3 GB
    PY=~/.cache/gaisnet/peers-venv/bin/python
    $PY benches/peers/smollm2_peft.py work --gguf M.gguf --text T.txt --batch 4 --length 128 --out w.safetensors
    $PY benches/peers/smollm2_peft.py run  --gguf M.gguf --work w.safetensors [--work ...] [--threads 2]

A work file is a safetensors file:

    tokens                       i32 [steps, batch, length]   a batch a step; each row stands for itself
    prompt                       i32 [n]                      what generation goes on from
    blocks.{i}.attn.{q,v}.lora_a f32 [rank, in]               LoRA's factors at the start
    blocks.{i}.attn.{q,v}.lora_b f32 [out, rank]

and in its metadata, as text: `rank`, `alpha`, `learning_rate`, `new_tokens`. The loss of a step is the
mean over batch x (length - 1) targets (each token but the first of a row), in nats; the optimiser is
AdamW (0.9, 0.999, 1e-8, no weight decay, constant rate).

Each case runs in a process of its own, for its peak memory: `peak_rss_mib` is that of the whole process,
`work_peak_rss_mib` that after loading.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

TRAIN = ["f32", "bf16-autocast", "bf16-base"]
GENERATE = ["f32", "bf16"]


def load_model(gguf, dtype):
    """The model of a GGUF file, dequantised; and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder, name = os.path.split(os.path.abspath(gguf))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.to(dtype), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def peak_mib():
    """Largest resident memory since the start, or since the last `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as status:
        kib = next(line for line in status if line.startswith("VmHWM")).split()[1]
    return int(kib) / 1024


def forget_peak():
    """Lets the kernel count the peak anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def read_work(path):
    """Tensors and metadata of a work file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def with_lora(model, work, meta):
    """The model with LoRA on q and v, at the work file's start."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=int(meta["rank"]),
        lora_alpha=float(meta["alpha"]),
        target_modules=["q_proj", "v_proj"],
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for i, layer in enumerate(model.base_model.model.model.layers):
            for letter in "qv":
                part = getattr(layer.self_attn, f"{letter}_proj")
                name = f"blocks.{i}.attn.{letter}"
                part.lora_A["default"].weight.copy_(work[f"{name}.lora_a"])
                part.lora_B["default"].weight.copy_(work[f"{name}.lora_b"])
    return model


def train(args):
    """One training case: the seconds and the loss of each step."""
    import contextlib

    import torch

    torch.set_num_threads(args.threads)
    work, meta = read_work(args.work)
    base = torch.bfloat16 if args.precision == "bf16-base" else torch.float32
    model, _ = load_model(args.gguf, base)
    model = with_lora(model, work, meta)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained), "adapters stay f32"
    optimiser = torch.optim.AdamW(
        trained, lr=float(meta["learning_rate"]), weight_decay=0.0, fused=True
    )
    cast = contextlib.nullcontext
    if args.precision != "f32":
        cast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    forget_peak()
    loaded = peak_mib()
    seconds, losses = [], []
    for batch in work["tokens"].long():
        began = time.perf_counter()
        with cast():
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    _, batch, length = work["tokens"].shape
    warm = seconds[2:] or seconds
    return {
        "precision": args.precision,
        "batch": batch,
        "length": length,
        "trained_values": sum(p.numel() for p in trained),
        "seconds_per_step": statistics.median(warm),
        "fastest_step": min(seconds),
        "seconds": seconds,
        "loss": losses,
        "loaded_rss_mib": loaded,
        "work_peak_rss_mib": peak_mib(),
    }


def generate(args):
    """One generation case: greedy, the bare base, a KV cache."""
    import torch

    torch.set_num_threads(args.threads)
    work, meta = read_work(args.work)
    dtype = torch.float32 if args.precision == "f32" else torch.bfloat16
    model, _ = load_model(args.gguf, dtype)
    model.eval()
    prompt = work["prompt"].long()[None]
    new = int(meta["new_tokens"])
    forget_peak()
    loaded = peak_mib()
    rates, out = [], None
    with torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )
            rates.append(new / (time.perf_counter() - began))
    return {
        "precision": args.precision,
        "prompt": prompt.shape[1],
        "new": new,
        "tokens_per_second": statistics.median(rates[1:]),
        "fastest": max(rates),
        "tokens": out[0, prompt.shape[1] :].tolist(),
        "loaded_rss_mib": loaded,
        "work_peak_rss_mib": peak_mib(),
    }


def make_work(args):
    """Writes a work file out of a text."""
    import torch
    from safetensors.torch import save_file

    model, tokenizer = load_model(args.gguf, torch.float32)
    with open(args.text, encoding="utf-8") as file:
        ids = tokenizer(file.read()).input_ids
    need = args.steps * args.batch * args.length
    if len(ids) < need + args.prompt:
        sys.exit(f"{args.text}: expected {need + args.prompt} tokens at least, got {len(ids)}")
    draws = torch.Generator().manual_seed(args.seed)
    tensors = {
        "tokens": torch.tensor(ids[:need], dtype=torch.int32).view(
            args.steps, args.batch, args.length
        ),
        "prompt": torch.tensor(ids[need : need + args.prompt], dtype=torch.int32),
    }
    for i, layer in enumerate(model.model.layers):
        for letter in "qv":
            outputs, inputs = getattr(layer.self_attn, f"{letter}_proj").weight.shape
            bound = inputs**-0.5  # as peft draws it: uniform, Kaiming with a = sqrt(5)
            a = (torch.rand(args.rank, inputs, generator=draws) * 2 - 1) * bound
            tensors[f"blocks.{i}.attn.{letter}.lora_a"] = a
            tensors[f"blocks.{i}.attn.{letter}.lora_b"] = torch.zeros(outputs, args.rank)
    meta = {
        "rank": args.rank,
        "alpha": args.alpha,
        "learning_rate": args.learning_rate,
        "new_tokens": args.new_tokens,
    }
    save_file(tensors, args.out, {key: str(value) for key, value in meta.items()})


def run(args):
    """All cases, each in a process of its own."""
    import peft
    import torch
    import transformers

    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": args.threads,
        "processor": processor(),
        "train": [],
        "generate": [],
    }
    cases = [("train", work, precision) for work in args.work for precision in TRAIN]
    cases += [("generate", args.work[0], precision) for precision in GENERATE]
    for kind, work, precision in cases:
        if args.only and kind != args.only:
            continue
        command = [sys.executable, __file__, kind, "--gguf", args.gguf, "--work", work]
        command += ["--precision", precision, "--threads", str(args.threads)]
        print(f"{kind} {precision} {work}", file=sys.stderr)
        child = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        report[kind].append(json.loads(child.stdout))
    print(json.dumps(report, indent=1))


def processor():
    """Its name, as Linux tells it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--gguf", required=True, help="SmolLM2-135M as GGUF")
    shared.add_argument("--threads", type=int, default=2)

    work = commands.add_parser("work", parents=[shared], help="write a work file")
    work.add_argument("--text", required=True, help="UTF-8 text, long enough")
    work.add_argument("--batch", type=int, default=4)
    work.add_argument("--length", type=int, default=128)
    work.add_argument("--steps", type=int, default=12)
    work.add_argument("--rank", type=int, default=8)
    work.add_argument("--alpha", type=float, default=16.0)
    work.add_argument("--learning-rate", type=float, default=1e-3)
    work.add_argument("--prompt", type=int, default=64)
    work.add_argument("--new-tokens", type=int, default=64)
    work.add_argument("--seed", type=int, default=1)
    work.add_argument("--out", required=True)

    both = commands.add_parser("run", parents=[shared], help="all cases, as JSON")
    both.add_argument("--work", action="append", required=True)
    both.add_argument("--only", choices=["train", "generate"])

    for name in ("train", "generate"):
        case = commands.add_parser(name, parents=[shared], help="one case, as JSON")
        case.add_argument("--work", required=True)
        case.add_argument("--precision", choices=TRAIN + ["bf16"], default="f32")

    args = parser.parse_args()
    if args.command == "work":
        make_work(args)
    elif args.command == "run":
        run(args)
    else:
        result = train(args) if args.command == "train" else generate(args)
        result["peak_rss_mib"] = whole_peak_mib()
        json.dump(result, sys.stdout)


def whole_peak_mib():
    """Peak of the whole process, loading too: `ru_maxrss` isn't forgotten."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
