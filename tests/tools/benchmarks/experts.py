"""Score and prune a random model of 64 experts per block, beside a loop in torch.

    python tests/tools/benchmarks/experts.py [--scratch FOLDER] [--blocks 5] [--torch PYTHON]

A bfloat16 model of Qwen3-MoE's form (1.05 GB: 5 blocks, 64 experts of 1024 x 512, 4 per token) is
written in a temporary folder. `refimpl` scores it and prunes it by Wanda to 0.5. The loop, with
transformers' modules in float32, prunes it from the same tokens: per block and sequence, hooks on
the experts add up the squares of what is routed to each; an expert without tokens is pruned by
magnitude. Each runs in a process of its own with two threads; memory is the largest resident one
(VmHWM), mapped pages included. Beside the time is that of the processor, which other work on the
machine changes less.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

D, F, EXPERTS, TOP, HEADS, VOCABULARY = 1024, 512, 64, 4, 8, 4096
SAMPLES, LENGTH = 2, 256
CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": D, "intermediate_size": F, "vocab_size": VOCABULARY,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": D // HEADS,
    "num_experts": EXPERTS, "num_experts_per_tok": TOP, "moe_intermediate_size": F,
    "norm_topk_prob": True, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16", "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip

LOOP = """
import json, re, sys, time
import numpy as np, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

folder, ids_file, out = sys.argv[1:]
started, before = time.perf_counter(), time.process_time()
torch.set_grad_enabled(False)
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
)
ids = torch.from_numpy(np.load(ids_file))
base = model.model
states = [base.embed_tokens(row[None]) for row in ids]
positions = torch.arange(ids.shape[1])[None]
rotary = base.rotary_emb(states[0], positions)
mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
pruned = 0


def keep_half(weight, squares):
    if not squares.any():  # an expert without tokens: by magnitude, of the whole matrix
        lowest = torch.argsort(weight.abs().flatten(), stable=True)[: weight.numel() // 2]
        weight.view(-1)[lowest] = 0.0
        return lowest.numel()
    score = weight.abs() * squares.sqrt()
    lowest = torch.argsort(score, dim=1, stable=True)[:, : weight.shape[1] // 2]
    weight.scatter_(1, lowest, 0.0)
    return lowest.numel()


for layer in base.layers:
    linears = {n: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    sums = {name: torch.zeros(m.in_features) for name, m in linears.items()}
    experts = layer.mlp.experts
    count, inner = experts.num_experts, experts.intermediate_dim
    routed, hidden = torch.zeros(count, base.config.hidden_size), torch.zeros(count, inner)

    def add(name):
        def hook(module, inputs, output):
            sums[name] += inputs[0].reshape(-1, module.in_features).square().sum(0)

        return hook

    def add_experts(module, inputs):
        x, chosen, _ = inputs
        for e in range(count):
            rows = x[(chosen == e).any(-1)]
            if len(rows):
                gate, up = torch.nn.functional.linear(rows, module.gate_up_proj[e]).chunk(2, -1)
                routed[e] += rows.square().sum(0)
                hidden[e] += (module.act_fn(gate) * up).square().sum(0)

    hooks = [m.register_forward_hook(add(name)) for name, m in linears.items()]
    hooks.append(experts.register_forward_pre_hook(add_experts))
    for h in states:
        layer(h, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    for hook in hooks:
        hook.remove()
    for name, m in linears.items():
        pruned += keep_half(m.weight.data, sums[name])
    for e in range(count):
        pruned += keep_half(experts.gate_up_proj.data[e][:inner], routed[e])
        pruned += keep_half(experts.gate_up_proj.data[e][inner:], routed[e])
        pruned += keep_half(experts.down_proj.data[e], hidden[e])
    states = [
        layer(h, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        for h in states
    ]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
seconds, cpu = time.perf_counter() - started, time.process_time() - before
ours, other, all_bits = load_file(out + "/model.safetensors"), [], 0
for i, layer in enumerate(base.layers):
    experts, at = layer.mlp.experts, f"model.layers.{i}.mlp.experts"
    other.append(0)
    for e in range(experts.num_experts):
        for k, name in enumerate(("gate", "up")):
            mine = experts.gate_up_proj.data[e].chunk(2)[k].numpy() == 0
            theirs = ours[f"{at}.{e}.{name}_proj.weight"].float().numpy() == 0
            other[-1] += int((mine != theirs).sum())
            all_bits += mine.size
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "pruned": pruned, "differ": other,
                  "compared": all_bits}))
"""


def write_model(folder: Path, blocks: int) -> int:
    """A model of normal weights, drawn block by block; its size in bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir()

    def drawn(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
        values = rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
        return values.astype(ml_dtypes.bfloat16)

    ones = np.ones(D, ml_dtypes.bfloat16)
    tensors = {"model.embed_tokens.weight": drawn(VOCABULARY, D), "model.norm.weight": ones}
    for i in range(blocks):
        at = f"model.layers.{i}"
        tensors |= {f"{at}.self_attn.{x}_proj.weight": drawn(D, D) for x in "qkvo"}
        tensors |= {f"{at}.self_attn.{x}_norm.weight": ones[: D // HEADS] for x in "qk"}
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{at}.{x}.weight": ones for x in norms}
        tensors[f"{at}.mlp.gate.weight"] = drawn(EXPERTS, D)
        for e in range(EXPERTS):
            for name, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items():
                tensors[f"{at}.mlp.experts.{e}.{name}_proj.weight"] = drawn(*shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": blocks}))
    return sum(file.stat().st_size for file in folder.iterdir())


def measured(*words: str) -> dict[str, float]:
    """Run the program in a process of its own: seconds and its largest resident memory."""
    code = (
        "import re, sys\n"
        "from refimpl.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    failed = end.code\n"
        "status = open('/proc/self/status').read()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)\n"
        "sys.exit(failed)\n"
    )
    started, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = int(re.findall(r"^(\d+)$", done.stderr, re.MULTILINE)[-1]) * 1024
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"seconds": time.perf_counter() - started, "cpu": cpu, "peak": peak}


def _shown(found: dict[str, float]) -> str:
    """Time, time of the processor and memory of a process."""
    times = f"{found['seconds']:.1f} s, {found['cpu']:.1f} s of a processor"
    return f"{times}, {found['peak'] / 1e9:.2f} GB"


def main() -> None:
    """Make, score, prune, and compare with the loop."""
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--scratch", type=Path, help="folder with room for twice the model")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--torch", help="a Python with torch and transformers, for the loop")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        model, out, ids = scratch / "model", scratch / "pruned", scratch / "ids.npy"
        size = write_model(model, options.blocks)
        print(
            f"model: {size / 1e9:.2f} GB, {options.blocks} blocks of {EXPERTS} experts", flush=True
        )
        np.save(ids, np.random.default_rng(1).integers(VOCABULARY, size=(SAMPLES, LENGTH)))
        for words in (
            ("score", model, "--tokens", ids, "--threads", "2"),
            (
                "prune",
                model,
                "-o",
                out,
                "--tokens",
                ids,
                "--sparsity",
                "0.5",
                "--allocation",
                "uniform",
                "--threads",
                "2",
            ),
        ):
            found = measured(*map(str, words))
            print(f"{words[0]}: {_shown(found)}", flush=True)
        if options.torch:
            arguments = [options.torch, "-c", LOOP, str(model), str(ids), str(out)]
            done = subprocess.run(arguments, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"torch loop, prune: {_shown(found)}; "
                f"of {found['compared']:,} decisions on experts differ, by block, {found['differ']}"
            )


if __name__ == "__main__":
    main()
