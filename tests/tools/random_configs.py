"""Random configurations of families, computed by transformers and by refimpl in float64.

    PYTHONPATH=.:tests python tests/tools/random_configs.py FAMILY... [--count 20] [--seed 0]

It needs the packages of the fixtures. A configuration starts from a fixture of its family: sizes,
kinds of blocks, flags and rotary parameters are drawn again. It prints, per family, how many agree
within the tests' tolerance, differ, are refused, or do not run in transformers itself.
"""

import argparse
import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from conftest import FIXTURES
from gates import CASES, GATES, worst_token
from transformers_forward import random_model

from refimpl import RefimplError, forward, read_model

IDS = np.arange(2, 26).reshape(2, 12)
TAPS = ("sliding_window", "conv_L_cache", "linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel")
TAPS += ("hidden_size_per_layer_input",)  # sizes above 1, too
FEW = ("num_experts", "num_local_experts", "n_routed_experts")


def drawn(fixture: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Another configuration of the family of a fixture."""
    new, layers, heads = dict(fixture), int(rng.integers(1, 5)), int(rng.choice([2, 4, 6]))
    layers_key = next((x for x in ("n_layer", "n_layers") if x in new), "num_hidden_layers")
    count = new[layers_key] if layers_key in new else len(new["layers_block_type"])
    for key, value in fixture.items():
        if key.endswith("_multipliers"):
            new[key] = rng.uniform(0.3, 3, len(value)).tolist()
        elif isinstance(value, list) and len(value) == count:
            new[key] = [value[i] for i in rng.integers(len(value), size=layers)]
        elif isinstance(value, bool) and key != "use_cache" and rng.random() < 0.3:
            new[key] = not value
        elif key.endswith("_eps"):
            new[key] = float(10 ** rng.uniform(-6, -2))
        elif key in ("intermediate_size", "moe_intermediate_size", "shared_intermediate_size"):
            new[key] = int(rng.integers(3, 30)) if value else value
        elif key in FEW and value:
            new[key] = 2 * int(rng.integers(2, 6))
        elif key in TAPS:
            new[key] = int(rng.integers(2, 9)) if value else value
        elif key.endswith(("_multiplier", "_scaling", "_scale", "_scaling_factor", "softcapping")):
            new[key] = float(rng.uniform(0.3, 3)) if value and isinstance(value, float) else value
    for key in {"n_group", "num_expert_group"} & new.keys():
        new[key] = new["topk_group"] = 1 if rng.random() < 0.5 else 2
    width = 12 * int(rng.integers(2, 5))
    widths = ("n_embd", "d_model", "word_embed_proj_dim")
    new |= {layers_key: layers} | {key: width for key in widths if key in new}
    new |= {"hidden_size": width} if "hidden_size" in new else {}
    if "num_attention_heads" in new:
        new["num_attention_heads"] = heads
        divisors = [n for n in (1, 2, 3, 6) if heads % n == 0]
        kv_heads = int(rng.choice(divisors)) if rng.random() < 0.8 else heads
        new |= {"num_key_value_heads": kv_heads} if "num_key_value_heads" in new else {}
    if "mamba_d_ssm" in new:
        new["mamba_d_ssm"] = 2 * new["hidden_size"]
    if "mamba_d_head" in new:
        new["mamba_d_head"] = 2 * new["hidden_size"] // new["mamba_n_heads"]
    if "kv_lora_rank" in new:
        new["num_key_value_heads"] = heads
        new["q_lora_rank"] = None if rng.random() < 0.3 else int(rng.integers(3, 20))
        for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            new[key] = int(rng.integers(3, 20))
    elif "head_dim" in new and isinstance(new["head_dim"], int):
        new["head_dim"] = 4 * int(rng.integers(2, 5))
    new |= {k: int(rng.integers(layers)) for k in ("num_kv_shared_layers",) if k in new}
    if new.pop("per_layer_config", None):
        new["global_head_dim"] = 4 * int(rng.integers(2, 6))
        new["num_global_key_value_heads"] = int(rng.choice([1, 2]))
    for entry in (new.get("rope_parameters") or {}, *(new.get("rope_parameters") or {}).values()):
        if isinstance(entry, dict) and "rope_theta" in entry:
            entry["rope_theta"] = float(10 ** rng.uniform(1, 5))
    return new


def compared(config: dict[str, Any], folder: Path) -> tuple[str, str]:
    """What became of a configuration, and why."""
    try:
        _, logits = random_model(config, IDS, folder)
    except Exception as error:
        return "not run by transformers", type(error).__name__ + ": " + str(error)[:90]
    if not np.isfinite(logits).all():
        return "not run by transformers", "NaN"
    try:
        ours = forward(read_model(folder), IDS, dtype="float64").logits
    except RefimplError as error:
        return "refused", str(error).replace("\n", " ")[:300]
    difference = worst_token(ours, logits)
    return ("right" if difference < GATES["float64"] else "WRONG"), f"{difference:.0e}"


def main() -> None:
    """Draw and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("families", nargs="+")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # torch's own is x above 20, which is off by up to 1e-10
    torch.nn.functional.softplus = lambda x: torch.logaddexp(x, torch.zeros_like(x))
    configs = [json.loads((FIXTURES / case / "config.json").read_text()) for case in CASES]
    for family in arguments.families:
        own = [x for x in configs if x["model_type"] == family]
        rng, results, reasons = np.random.default_rng(arguments.seed), Counter[str](), set[str]()
        while results.total() - results["not run by transformers"] < arguments.count:
            if results["not run by transformers"] > 3 * arguments.count:
                break
            torch.manual_seed(int(rng.integers(2**31)))
            config = drawn(json.loads(json.dumps(own[rng.integers(len(own))])), rng)
            with tempfile.TemporaryDirectory() as folder:
                result, why = compared(config, Path(folder))
            results[result] += 1
            if result != "right":
                reasons.add(f"{result}: {why}")
            if result == "WRONG":
                reasons.add(json.dumps(config))
        print(family, dict(results), *sorted(reasons), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
