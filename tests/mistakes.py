"""Mistakes that a candidate of the oracle could make: lines of the sample project, and others.

Each has a case where it shows, and the first step that goes wrong. Where no case of `fixtures/`
shows it, one of `crafted_cases.CRAFTED` does.
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import ml_dtypes
from candidates import PROJECT, Arrays

from refimpl.oracle.case import Case

ALL = ("float64", "float32", "float16", "bfloat16")
ABOVE_16, ABOVE_BFLOAT16 = ALL[:2], ALL[:3]  # where a cast to float16, or to bfloat16, loses bits


@dataclass(frozen=True)
class Mistake:
    """One line that is wrong.

    Args:
        line: Text that the sample project has once.
        instead: The wrong text in its place.
        case: A case of `fixtures/cases`, or one of `CRAFTED`.
        step: The first that goes wrong in float64 and float32.
        dtypes: Of the computation, where it is a mistake.
    """

    line: str
    instead: str
    case: str
    step: str
    dtypes: tuple[str, ...] = ALL

    @property
    def file(self) -> str:
        """The file of the sample project that has the line."""
        texts = {path.name: path.read_text("utf-8") for path in PROJECT.glob("*.py")}
        assert sum(text.count(self.line) for text in texts.values()) == 1, self.line
        return next(name for name, text in texts.items() if self.line in text)


def mistakes(*rows: tuple[Any, ...]) -> dict[str, Mistake]:
    """Rows of a name and the fields of its `Mistake`."""
    table = {name: Mistake(*fields) for name, *fields in rows}
    assert len(table) == len(rows)
    return table


NORM = "wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale"
LAYER_NORM = 'F.layer_norm(wide, wide.shape[-1:], scale, widened(weights["bias"]), eps)'
SQUARES, PRODUCTS = "x.double().square().sum((0, 1))", "rows = x.double().flatten(0, 1)"
SCORE = "weight.double().abs() * (total / sequences).sqrt()"
COMPENSATION = "w[:, i + 1 :] -= error[:, None] * u[i, i + 1 :]"
ROPE_TABLES = "angles.cos().to(self.dtype), angles.sin().to(self.dtype)"
OWL_CUT = "or [0.0] * len(sizes)]\n    return [sparsity - v + mean(d) for v in d]\n\n\ndef dlp"
Q_KEEP = "blocks.0.q_proj.keep"

FORWARD = mistakes(
    ("OPT's positions from 0", "first_position=2", "first_position=0", "opt", "embed"),
    ("GPT-2's positions from 1", "[first : first + ids.shape[1]]",
     "[first + 1 : first + 1 + ids.shape[1]]", "gpt2", "embed"),
    ("Gemma's embedding not scaled", "x = x * torch.tensor(x.shape[-1] ** 0.5, dtype=x.dtype)",
     "pass", "gemma2", "embed"),
    ("Gemma's norm without the 1", 'scale + 1 if self.family.norm == "rms+1" else scale', "scale",
     "gemma2", "blocks.0.attn_norm"),
    ("eps omitted", " + eps) * scale", ") * scale", "llama", "blocks.0.attn_norm"),
    ("eps outside the square root", NORM,
     "wide / (wide.square().mean(-1, keepdim=True).sqrt() + eps) * scale", "llama",
     "blocks.0.attn_norm"),
    ("the default eps, not the model's", '"layer_norm_epsilon", default=1e-5', "default=1e-5",
     "gpt2", "blocks.0.attn_norm"),
    ("LayerNorm that does not centre", LAYER_NORM, NORM + ' + widened(weights["bias"])', "opt",
     "blocks.0.attn_norm"),
    ("LayerNorm without its bias", 'widened(weights["bias"])', "None", "gpt2",
     "blocks.0.attn_norm"),
    ("LayerNorm by n - 1", LAYER_NORM,
     "(wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, keepdim=True) + eps).sqrt()"
     ' * scale + widened(weights["bias"])', "gpt_neox", "blocks.0.attn_norm"),
    ("no norm of queries and keys", '"qwen3": Family(NORMS | ATTENTION | MLP | HEAD_NORMS)',
     '"qwen3": Family(NORMS | ATTENTION | MLP)', "qwen3", "blocks.0.q"),
    ("the queries' norm for keys", 'f"self_attn.{x}_norm" for x in "qk"',
     'f"self_attn.q_norm" for x in "qk"', "gemma3", "blocks.0.k"),
    ("biases of linears omitted", 'w.get(f"{name}.bias")', "None", "qwen2", "blocks.0.q"),
    ("fused weights split by kind, not by head", 'fused={"qkv": "by head"}',
     'fused={"qkv": "stacked"}',
     "gpt_neox", "blocks.0.q"),
    ("keys and values swapped", "zip(LINEARS[:3], x.split(sizes), strict=True)",
     'zip(("q_proj", "v_proj", "k_proj"), x.split(sizes), strict=True)', "phi3", "blocks.0.k"),
    ("rotation in the opposite direction", "other * cosine + one * sine",
     "other * cosine - one * sine",
     "gpt_neox", "blocks.0.q_rope"),
    ("rotation of neighbouring pairs", "x.split([half, half, x.shape[-1] - 2 * half], -1)",
     "(x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2], x[..., 2 * half :])", "llama",
     "blocks.0.q_rope"),
    ("RoPE theta 10,000, not the model's", 'known["rope_theta"] **', "10000.0 **", "mistral",
     "blocks.0.q_rope"),
    ("rotation of all channels", 'int(self.heads[2] * known.get("partial_rotary_factor", 1.0))',
     "self.heads[2]", "gpt_neox", "blocks.0.q_rope"),
    ("linear factor of RoPE omitted", ' / known.get("factor", 1.0)', "", "gemma3",
     "blocks.5.q_rope"),
    ("RoPE of the global blocks everywhere", 'known[self.fact("layer_types")[index]]',
     'known["full_attention"]', "gemma3", "blocks.0.q_rope"),
    ("rotary positions from 1", "torch.arange(length, device=self.device)[:, None]",
     "torch.arange(1, length + 1, device=self.device)[:, None]", "qwen2", "blocks.0.q_rope"),
    ("key-value heads tiled, not repeated", "x.repeat_interleave(groups, 1)",
     "x.repeat(1, groups, 1, 1)", "llama", "blocks.0.attn_out"),
    ("attention logits scaled by head_dim",
     'model.fact("query_pre_attn_scalar", default=q.shape[-1])',
     "q.shape[-1]", "gemma2", "blocks.0.attn_out"),
    ("no cap on attention logits", 'model.fact("attn_logit_softcapping")', "None", "gemma2",
     "blocks.0.attn_out"),
    ("a mask that shows the next token", "(back < 0) if window is None",
     "(back < -1) if window is None", "phi3", "blocks.0.attn_out"),
    ("a window one token longer", "back >= window", "back > window", "mistral",
     "blocks.0.attn_out"),
    ("a window one token shorter", "back >= window", "back >= window - 1", "mistral",
     "blocks.0.attn_out"),
    ("no window", 'return self.fact("sliding_window")', "return None", "gemma3",
     "blocks.0.attn_out"),
    ("a window in every block", 'if kinds is not None and kinds[index] != "sliding_attention":',
     "if False:", "gemma2", "blocks.1.attn_out"),
    ("the wrong blocks windowed", 'kinds[index] != "sliding_attention"',
     'kinds[index] == "sliding_attention"', "gemma2", "blocks.0.attn_out"),
    ("softmax over queries", ".softmax(-1)", ".softmax(-2)", "gpt2", "blocks.0.attn_out"),
    ("no norm after attention", '    "attn_post_norm": "post_attention_layernorm",\n', "", "gemma2",
     "blocks.0.attn_out"),
    ("no norm after the MLP", '    "mlp_post_norm": "post_feedforward_layernorm",\n', "", "gemma3",
     "blocks.0.mlp_out"),
    ("attention and MLP in sequence", "x if model.family.parallel else middle", "middle",
     "gpt_neox", "blocks.0.mlp_norm"),
    ("attention and MLP in parallel", "x if model.family.parallel else middle", "x", "llama",
     "blocks.0.mlp_norm"),
    ("exact GELU instead of the tanh form", '"gelu_new": lambda x: F.gelu(x, approximate="tanh")',
     '"gelu_new": F.gelu', "gpt2", "blocks.0.mlp_out"),
    ("tanh form instead of exact GELU", '"gelu": F.gelu,',
     '"gelu": lambda x: F.gelu(x, approximate="tanh"),', "gpt_neox", "blocks.0.mlp_out"),
    ("exact GELU instead of Gemma's tanh form",
     '"gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh")',
     '"gelu_pytorch_tanh": F.gelu', "gemma2", "blocks.0.mlp_out"),
    ("sigmoid form of GELU", '"gelu_new": lambda x: F.gelu(x, approximate="tanh")',
     '"gelu_new": lambda x: x * torch.sigmoid(1.702 * x)', "gpt2", "blocks.0.mlp_out"),
    ("GELU instead of SiLU", '"silu": F.silu', '"silu": F.gelu', "qwen3", "blocks.0.mlp_out"),
    ("GELU instead of ReLU", '"relu": F.relu', '"relu": F.gelu', "opt", "blocks.0.mlp_out"),
    ("the activation on the wrong half", 'act(linear("gate_proj", y)) * linear("up_proj", y)',
     'linear("gate_proj", y) * act(linear("up_proj", y))', "mistral", "blocks.0.mlp_out"),
    ("gate and up swapped", '("gate_proj", "up_proj"), x.chunk(2)',
     '("up_proj", "gate_proj"), x.chunk(2)', "phi3", "blocks.0.mlp_out"),
    ("the residual from before attention", 'seen["resid_post"] = middle + y',
     'seen["resid_post"] = x + y', "qwen2", "blocks.0.resid_post"),
    ("no final norm", "y = model.norm(x, model.top(model.family.final_norm))", "y = x", "qwen3",
     "final_norm"),
    ("embedding used as an untied head",
     "weight = model.top(model.family.head) or model.top(model.family.embed)",
     "weight = model.top(model.family.embed)", "llama", "logits"),
    ("no cap on the final logits", '(cap := model.fact("final_logit_softcapping"))',
     "(cap := None)", "gemma2", "logits"),
    ("attention's cap on the final logits", '(cap := model.fact("final_logit_softcapping"))',
     '(cap := model.fact("attn_logit_softcapping"))', "gemma2", "logits"),
)  # fmt: skip

DRIFT = "(a - b).norm(dim=-1) / b.norm(dim=-1)"

EXPERIMENT = mistakes(
    ("a perturbation that is not scaled", 'recipe["eta"] * size / unit', 'recipe["eta"] / unit',
     "qwen2",
     "perturbed.0.drift"),
    ("a perturbation of eta per channel", 'recipe["eta"] * size / unit',
     'recipe["eta"] * size / noise.shape[-1] ** 0.5', "qwen2", "perturbed.0.drift"),
    ("scaled by sequence, not by token", '-1 if recipe["noise_scale"] == "token" else (-2, -1)',
     "(-2, -1)", "llama", "perturbed.0.drift"),
    ("scaled by token, not by sequence", '-1 if recipe["noise_scale"] == "token" else (-2, -1)',
     "-1", "gemma3", "perturbed.0.drift"),
    ("noise not scaled per channel", 'recipe["noise_shape"] == "channel"', "False", "mistral",
     "perturbed.0.drift"),
    ("channels scaled by size, not by deviation", "((h - mean).square() * mask)",
     "(h.square() * mask)", "mistral", "perturbed.0.drift"),
    ("the same noise after every block", "noise[i].double()", "noise[0].double()", "llama",
     "perturbed.1.drift"),
    ("a perturbation before the block", "experiment(model, blocks, clean[1:],",
     "experiment(model, blocks, clean[:-1],", "phi3", "perturbed.0.drift"),
    ("drift relative to the perturbed state", DRIFT, "(a - b).norm(dim=-1) / a.norm(dim=-1)",
     "gpt2",
     "perturbed.0.drift"),
    ("drift that is not relative", DRIFT, "(a - b).norm(dim=-1)", "opt", "perturbed.0.drift"),
    ("drift of a token, not of a sequence", 'if norm == "sequence":', "if False:", "qwen3",
     "perturbed.0.drift"),
    ("drift of the largest channel", DRIFT,
     "(a - b).norm(torch.inf, dim=-1) / b.norm(torch.inf, dim=-1)", "gpt_neox",
     "perturbed.0.drift"),
    ("alignment divided by one norm twice", "sizes = a.norm(dim=-1) * b.norm(dim=-1)",
     "sizes = b.norm(dim=-1).square()", "gemma3", "perturbed.0.alignment"),
    ("alignment of the perturbation", "(a * b).sum(-1) / sizes",
     "((a - b) * b).sum(-1) / ((a - b).norm(dim=-1) * b.norm(dim=-1))", "gpt_neox",
     "perturbed.0.alignment"),
    ("sinks included", 'if sink == "include":', "if True:", "sink", "perturbed.0.drift"),
    ("sinks found by the mean norm", "norm.quantile(0.5, dim=-1, keepdim=True)",
     "norm.mean(-1, keepdim=True)", "sink", "perturbed.0.drift"),
    ("all tokens in one mean", "return means[count > 0].mean()", "return x[valid].mean()", "sink",
     "perturbed.0.drift"),
    ("median over tokens", "return means[count > 0].mean()", "return x[valid].median()", "gpt2",
     "perturbed.0.drift"),
    ("mean before the ratio", "effects[-1][0] / effects[0][0]",
     "effects[-1][0] / effects[0][0].mean()",
     "gemma3", "absorption_coefficient"),
    ("inverse ratio", "effects[-1][0] / effects[0][0]", "effects[0][0] / effects[-1][0]",
     "qwen2",
     "absorption_coefficient"),
    ("geometric mean of ratios", "coefficients.append(meaned(ratio, ratio.isfinite()))",
     "coefficients.append(meaned(ratio.log(), ratio.isfinite()).exp())", "phi3",
     "absorption_coefficient"),
    ("ratio at the next block, not the last", "ratio = effects[-1][0]",
     "ratio = effects[min(1, last - i)][0]",
     "llama", "absorption_coefficient"),
)  # fmt: skip

TAIL = "values[values > floor].square()"

SIGNALS = mistakes(
    ("OWL with a median, not a mean", "OWL_M * scores.mean()", "OWL_M * scores.median()", "phi3",
     "owl.signal"),
    ("OWL with m = 3", "OWL_M = 5.0", "OWL_M = 3.0", "llama", "owl.signal"),
    ("OWL as a fraction, not a percentage", "100 * (scores >", "(scores >", "qwen2", "owl.signal"),
    ("OWL's outliers per linear", "outliers.append(outlier_percent(scores))",
     'parts = scores.split([stored[f"{name}.weight"].numel() for name in linears(stored)])\n'
     "        outliers.append(torch.stack([outlier_percent(x) for x in parts]).mean())", "mistral",
     "owl.signal"),
    ("OWL with >=, not >", "scores > OWL_M", "scores >= OWL_M", "exact", "owl.signal"),
    ("scores without the square root", SCORE, "weight.double().abs() * (total / sequences)",
     "gpt2", "owl.signal"),
    ("scores without activations", SCORE, "weight.double().abs().expand(-1, len(total))", "opt",
     "owl.signal"),
    ("o_proj scored by the input of attention", '"o_proj": "attn_heads"',
     '"o_proj": "attn_norm"', "llama", "owl.signal"),
    ("statistics of one sequence only", SQUARES, "x[:1].double().square().sum((0, 1)) * len(x)",
     "gemma2", "owl.signal"),
    ("variance instead of the mean square", SQUARES,
     "(x - x.mean((0, 1))).double().square().sum((0, 1))",
     "opt", "owl.signal"),
    ("sums not divided by the sequences", "(total / sequences).sqrt()", "total.sqrt()", "opt",
     "dlp.signal"),
    ("DLP with a median, not a mean", "typical.append(scores.mean())",
     "typical.append(scores.median())", "phi3", "dlp.signal"),
    ("DLP with a root mean square", "typical.append(scores.mean())",
     "typical.append(scores.square().mean().sqrt())", "gemma2", "dlp.signal"),
    ("AlphaPruning with the intended xmin", "torch.log10(0.95 * left)", "0.95 * left", "qwen3",
     "alphapruning.signal"),
    ("singular values not squared", TAIL, "values[values > floor]", "llama", "alphapruning.signal"),
    ("exponent minus 1", "best, found = float(distance), float(exponent)",
     "best, found = float(distance), float(exponent) - 1", "phi3", "alphapruning.signal"),
    ("exponent from n - 1", "exponent = 1 + n /", "exponent = 1 + (n - 1) /", "gemma3",
     "alphapruning.signal"),
    ("histogram of 50 bins", "BINS = 100", "BINS = 50", "mistral", "alphapruning.signal"),
    ("distance of the tail from above", "device=tail.device) / n", "device=tail.device).add(1) / n",
     "opt", "alphapruning.signal"),
)  # fmt: skip

CORRECTED = 'corrected = project(moved, totals, recipe["sparsity"])'

ALLOCATION = mistakes(
    ("OWL's spread halved", "2 * OWL_LAMBDA * v", "OWL_LAMBDA * v", "llama", "owl.base"),
    ("OWL's outliers pruned more", OWL_CUT, OWL_CUT.replace("- v + mean(d)", "+ v - mean(d)"),
     "qwen2", "owl.base"),
    ("OWL's outliers not stretched", "unit_interval(outliers) or [0.0] * len(sizes)", "outliers",
     "gpt2", "owl.base"),
    ("DLP with inverted importance", "1 - u / sum(typical)", "u / sum(typical)", "phi3",
     "dlp.base"),
    ("DLP with alpha = 0.1", "DLP_ALPHA, ALPHA_EPSILON = 0.08, 0.15",
     "DLP_ALPHA, ALPHA_EPSILON = 0.08, 0.1", "opt", "dlp.base"),
    ("AlphaPruning with the median of linears", "unit_interval([mean(x) for x in alphas])",
     "unit_interval([sorted(x)[len(x) // 2] for x in alphas])", "gemma2", "alphapruning.base"),
    ("AlphaPruning shifted, not scaled", "v * sparsity * sum(sizes) / spent", "v * sparsity",
     "qwen3", "alphapruning.base"),
    ("AlphaPruning inverted", "v * 2 * ALPHA_EPSILON + 1 - ALPHA_EPSILON",
     "1 + ALPHA_EPSILON - v * 2 * ALPHA_EPSILON", "gemma3", "alphapruning.base"),
    ("a base that is not projected", "base_sparsity = project(unprojected, totals, recipe",
     "base_sparsity = (lambda x, *_: x)(unprojected, totals, recipe", "light", "owl.base"),
    ("clipped without redistribution", "    budget = sparsity * sum(sizes)\n",
     "    shift = sparsity - sum(n * v for n, v in zip(sizes, x)) / sum(sizes)\n"
     "    return [clipped(v + shift, 0, 1) for v in x]\n    budget = sparsity * sum(sizes)\n",
     "light", "owl.base"),
    ("opposite sign of the correction", "centre - v", "v - centre", "llama", "owl.corrected"),
    ("correction without its strength", "clipped(strength * v, -most, most)",
     "clipped(v, -most, most)", "qwen3", "owl.corrected"),
    ("correction without its limit", "clipped(strength * v, -most, most)", "strength * v",
     "strong", "owl.corrected"),
    ("logarithms not clipped", "clipped(log(r), -CLIP, CLIP)", "log(r)", "amplifying",
     "owl.corrected"),
    ("logarithms to base 10", "clipped(log(r), -CLIP, CLIP)",
     "clipped(log(r) / log(10), -CLIP, CLIP)", "mistral", "owl.corrected"),
    ("r - 1 instead of its logarithm", "clipped(log(r), -CLIP, CLIP)",
     "clipped(r - 1, -CLIP, CLIP)",
     "opt", "owl.corrected"),
    ("correction not centred", "centre - v", "-v", "strong", "owl.corrected"),
    ("corrected allocation not on budget", CORRECTED, "corrected = moved", "strong",
     "owl.corrected"),
    ("budget met by a factor", CORRECTED,
     'corrected = [x * recipe["sparsity"] * len(moved) / sum(moved) for x in moved]', "strong",
     "owl.corrected"),
    ("smallest remainders first", "(whole[i] - quotas[i], i)", "(quotas[i] - whole[i], i)", "llama",
     "owl.counts"),
    ("ties of remainders to the higher index", "(whole[i] - quotas[i], i)",
     "(whole[i] - quotas[i], -i)", "llama", "owl.counts"),
    ("remainders dropped", "for i in order[: total - sum(whole)]:", "for i in []:", "qwen2",
     "owl.counts"),
    ("each linear rounded independently",
     "[shares(n, x) for n, x in zip(apportioned(quotas, total), sizes, strict=True)]",
     "[[round(v * n) for n in x] for v, x in zip(s, sizes, strict=True)]", "gpt2", "owl.counts"),
    ("counts split equally over linears", "Fraction(total * n, sum(sizes))",
     "Fraction(total, len(sizes))", "opt", "owl.counts"),
    ("a budget rounded down", "round(sparsity * sum(blocks))", "int(sparsity * sum(blocks))",
     "uneven", "uniform.counts"),
    ("half of a budget rounded up", "round(sparsity * sum(blocks))",
     "int(sparsity * sum(blocks) + 0.5)", "half", "owl.counts"),
)  # fmt: skip

WANDA = mistakes(
    ("calibrated on the dense model", "x = passed(model, index, weights, x)",
     "x = passed(model, index, model.cast(model.stored(index)), x)", "levels",
     "wanda.blocks.1.attn_norm.squares"),
    ("statistics updated within a block",
     'weight, total = stored[f"{name}.weight"], sums[READS[name]]',
     "passed(model, index, model.cast(stored), x, seen)\n"
     "            sums = {point: add(seen[point]) for point in sums}\n"
     '            weight, total = stored[f"{name}.weight"], sums[READS[name]]', "levels",
     "wanda.blocks.0.attn_heads.squares"),
    ("Wanda over the matrix", "wanda_keep(scores[name], count)",
     "~lowest(scores[name].flatten(), count).reshape(scores[name].shape)", "plain",
     f"wanda.{Q_KEEP}"),
    ("Wanda by columns", "wanda_keep(scores[name], count)",
     "wanda_keep(scores[name].T, count).T.contiguous()", "plain", f"wanda.{Q_KEEP}"),
    ("Wanda keeps the lowest", "return rank >= takes[:, None]", "return rank < takes[:, None]",
     "plain", f"wanda.{Q_KEEP}"),
    ("one weight of a row too many", "return rank >= takes[:, None]",
     "return rank > takes[:, None]", "plain", f"wanda.{Q_KEEP}"),
    ("remainder taken from the first rows", "takes = each + lowest(following, more).long()",
     "takes = each + (torch.arange(rows) < more).long()", "uneven", f"wanda.{Q_KEEP}"),
    ("remainder not pruned", "    if more:", "    if False:", "uneven", f"wanda.{Q_KEEP}"),
    ("remainder taken from the highest rows", "lowest(following, more)", "lowest(-following, more)",
     "uneven", f"wanda.{Q_KEEP}"),
    ("the last of equal scores in a row", "order = score.argsort(dim=1, stable=True)\n    if more",
     "order = score.shape[1] - 1 - score.flip(1).argsort(dim=1, stable=True)\n    if more", "tied",
     f"wanda.{Q_KEEP}"),
    ("threshold (<=) instead of a count", "return rank >= takes[:, None]",
     "return score > score.sort(1).values.gather(1, takes[:, None] - 1)", "tied",
     f"wanda.{Q_KEEP}"),
    ("the last of equal rows", "chosen[score.argsort(stable=True)[:count]] = True",
     "chosen[len(score) - 1 - score.flip(0).argsort(stable=True)[:count]] = True", "tied rows",
     f"wanda.{Q_KEEP}"),
    ("weights not zeroed", "new = weight * keep[name]", "new = weight", "levels",
     "wanda.blocks.0.q_proj.weight"),
)  # fmt: skip

SPARSEGPT = mistakes(
    ("products of one sequence only", PRODUCTS,
     "rows = x[:1].double().flatten(0, 1) * len(x) ** 0.5", "plain",
     "sparsegpt.blocks.0.attn_norm.products"),
    ("products of centred inputs", PRODUCTS, "rows = (x - x.mean((0, 1))).double().flatten(0, 1)",
     "plain", "sparsegpt.blocks.0.attn_norm.products"),
    ("half the damping", "damping * h.diagonal()", "0.5 * damping * h.diagonal()", "plain",
     f"sparsegpt.{Q_KEEP}"),
    ("damping that is not relative", "damping * h.diagonal().mean()", "damping", "plain",
     f"sparsegpt.{Q_KEEP}"),
    ("damping by each channel", "damping * h.diagonal().mean()", "damping * h.diagonal()", "plain",
     f"sparsegpt.{Q_KEEP}"),
    ("the factor of H, not of its inverse", "u = torch.linalg.cholesky(inverse, upper=True)",
     "u = torch.linalg.cholesky(h, upper=True)", "plain", f"sparsegpt.{Q_KEEP}"),
    ("scores by the inverse's diagonal", "(w[:, start:end] / u.diagonal()[start:end])",
     "(w[:, start:end] / inverse.diagonal().sqrt()[start:end])", "plain", f"sparsegpt.{Q_KEEP}"),
    ("scores by size alone", "(w[:, start:end] / u.diagonal()[start:end])", "w[:, start:end]",
     "plain", f"sparsegpt.{Q_KEEP}"),
    ("decided row by row", "~lowest(score.flatten(), taken).reshape(score.shape)",
     "wanda_keep(score, taken)", "plain", f"sparsegpt.{Q_KEEP}"),
    ("columns by their size",
     "def sparsegpt(weight: Tensor, hessian: Tensor, count: int, damping: float)"
     " -> tuple[Tensor, Tensor]:", "def sparsegpt(weight, hessian, count, damping):\n"
     "    order = hessian.diagonal().argsort(descending=True)\n" "    back = order.argsort()\n"
     "    keep, w = in_order(weight[:, order], hessian[order][:, order], count, damping)\n"
     "    return keep[:, back], w[:, back]\n\n\n" "def in_order(weight, hessian, count, damping):",
     "plain", f"sparsegpt.{Q_KEEP}"),
    ("columns from the last to the first",
     "def sparsegpt(weight: Tensor, hessian: Tensor, count: int, damping: float)"
     " -> tuple[Tensor, Tensor]:", "def sparsegpt(weight, hessian, count, damping):\n"
     "    keep, w = in_order(weight.flip(1), hessian.flip(0, 1), count, damping)\n"
     "    return keep.flip(1), w.flip(1)\n\n\n" "def in_order(weight, hessian, count, damping):",
     "plain", f"sparsegpt.{Q_KEEP}"),
    ("dead channels scored", "        score[:, dead[start:end]] = 0\n", "", "dead",
     f"sparsegpt.{Q_KEEP}"),
    ("no compensation", COMPENSATION, "pass", "levels", "sparsegpt.blocks.0.q_proj.weight"),
    ("opposite sign of the compensation", COMPENSATION, COMPENSATION.replace("-=", "+="), "levels",
     "sparsegpt.blocks.0.q_proj.weight"),
    ("compensation by the inverse", COMPENSATION, COMPENSATION.replace("u[i", "inverse[i"),
     "levels", "sparsegpt.blocks.0.q_proj.weight"),
    ("an error not divided by the factor", "error = w[:, i] * ~keep[:, i] / u[i, i]",
     "error = w[:, i] * ~keep[:, i]", "levels", "sparsegpt.blocks.0.q_proj.weight"),
    ("64 columns at once", "WIDTH = 128", "WIDTH = 64", "wide",
     "sparsegpt.blocks.0.down_proj.keep"),
    ("all columns at once", "WIDTH = 128", "WIDTH = 4096", "wide",
     "sparsegpt.blocks.0.down_proj.keep"),
    ("compensation within 128 columns only", COMPENSATION,
     "w[:, i + 1 : end] -= error[:, None] * u[i, i + 1 : end]", "wide",
     "sparsegpt.blocks.0.down_proj.keep"),
    ("a count split by columns, rounded up", "shares(count, widths)",
     "[-(-count * n // columns) for n in widths]", "wide, uneven",
     "sparsegpt.blocks.0.down_proj.keep"),
    ("the last of equal scores", "~lowest(score.flatten(), taken).reshape(score.shape)",
     "~lowest(score.flatten().flip(0), taken).flip(0).reshape(score.shape)", "tied rows",
     f"sparsegpt.{Q_KEEP}"),
    ("weights not rounded as the file is", 'stored[f"{name}.weight"] = rounded(new, weight.dtype)',
     'stored[f"{name}.weight"] = new.to(model.dtype)', "mistral",
     "sparsegpt.blocks.0.q_proj.weight", ABOVE_16),
)  # fmt: skip

PATTERN_KEEP = f"pattern.{Q_KEEP}"
GROUPS = "torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False)"

PATTERN = mistakes(
    ("N counted as kept", "[:, :zeros]", "[:, : group - zeros]", "plain", PATTERN_KEEP),
    ("groups along the outputs",
     "wanda_keep(scores[name], count)\n                    if pattern is None\n"
     "                    else pattern_keep(scores[name], *pattern)",
     "wanda_keep(scores[name], count)\n                    if pattern is None\n"
     "                    else pattern_keep(scores[name].T, *pattern).T", "plain", PATTERN_KEEP),
    ("groups of distant channels", "groups = score.reshape(-1, group)\n    order",
     "score = score.unflatten(1, (group, -1)).transpose(1, 2).flatten(1)\n"
     "    groups = score.reshape(-1, group)\n    order", "plain", PATTERN_KEEP),
    ("highest of a group pruned", "order = groups.argsort(dim=1, stable=True)",
     "order = groups.argsort(dim=1, stable=True, descending=True)", "plain", PATTERN_KEEP),
    ("the last of equal scores in a group", "order = groups.argsort(dim=1, stable=True)",
     "order = group - 1 - groups.flip(1).argsort(dim=1, stable=True)", "tied", PATTERN_KEEP),
)  # fmt: skip

ENTROPY = "F.cross_entropy(logits, ids[:, 1:].flatten()).exp()"

PERPLEXITY = mistakes(
    ("perplexity of the token itself", "ids[:, 1:].flatten()", "ids[:, :-1].flatten()", "gemma3",
     "dense.perplexity"),
    ("nats instead of perplexity", ENTROPY, ENTROPY.removesuffix(".exp()"), "levels",
     "dense.perplexity"),
    ("perplexity to base 2", ENTROPY, ENTROPY.replace("exp", "exp2"), "llama", "dense.perplexity"),
    ("mean of perplexities", ENTROPY,
     'F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")'
     ".view(len(ids), -1).mean(1).exp().mean()", "gpt2", "dense.perplexity"),
    ("perplexity divided by one token more", ENTROPY,
     '(F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum") / ids.numel()).exp()', "opt",
     "dense.perplexity"),
    ("perplexity of the dense model", "perplexity(model, block.after, ids)",
     "perplexity(model, clean[-1], ids)", "levels", "wanda.perplexity"),
)  # fmt: skip

SOFTMAX = "logits.masked_fill(hidden, -torch.inf).softmax(-1)"

DTYPES = mistakes(
    ("RoPE tables in float16", ROPE_TABLES, ROPE_TABLES.replace(".to(", ".half().to("), "llama",
     "blocks.0.q_rope", ABOVE_16),
    ("RoPE tables in bfloat16", ROPE_TABLES, ROPE_TABLES.replace(".to(", ".bfloat16().to("),
     "llama", "blocks.0.q_rope", ABOVE_BFLOAT16),
    ("RoPE angles in bfloat16", "[:, None] * frequencies", "[:, None] * frequencies.bfloat16()",
     "gemma3", "blocks.0.q_rope"),
    ("norms in bfloat16", 'wide, scale = widened(x), widened(weights["weight"])',
     'wide, scale = x.bfloat16(), weights["weight"].bfloat16()', "qwen2", "blocks.0.attn_norm"),
    ("softmax in float16", SOFTMAX, SOFTMAX.replace(".soft", ".half().soft"), "phi3",
     "blocks.0.attn_out"),
    ("softmax in bfloat16", SOFTMAX, SOFTMAX.replace(".soft", ".bfloat16().soft"), "phi3",
     "blocks.0.attn_out"),
    ("the residual in bfloat16", 'seen["resid_mid"] = x + y',
     'seen["resid_mid"] = (x + y).bfloat16().to(x)', "gpt_neox", "blocks.0.resid_mid",
     ABOVE_BFLOAT16),
    ("the noise in bfloat16", "noise[i].double()", "noise[i].bfloat16().double()", "gemma3",
     "perturbed.0.drift"),
    ("drift in bfloat16", "x.double() * mask for x in (state, clean)",
     "x.bfloat16().double() * mask for x in (state, clean)", "qwen3", "perturbed.0.drift",
     ABOVE_BFLOAT16),
    ("drift in float16", "x.double() * mask for x in (state, clean)",
     "x.half().double() * mask for x in (state, clean)", "qwen3", "perturbed.0.drift", ABOVE_16),
    ("statistics in float16", SQUARES, "x.half().square().sum((0, 1)).double()", "qwen2",
     "dlp.signal"),
    ("statistics in bfloat16", SQUARES, "x.bfloat16().square().sum((0, 1)).double()", "qwen2",
     "owl.signal"),
    ("weights scored in bfloat16", SCORE, SCORE.replace(".double", ".bfloat16().double"), "gemma2",
     "owl.signal"),
    ("singular values of bfloat16 weights", "weight.double())", "weight.bfloat16().double())",
     "llama", "alphapruning.signal"),
    ("the coefficient in bfloat16", "result.coefficient.tolist()",
     "result.coefficient.bfloat16().tolist()", "gpt2", "owl.corrected"),
    ("the Hessian in float16", "return rows.T @ rows",
     "return (rows.half().T @ rows.half()).double()", "plain",
     "sparsegpt.blocks.0.attn_norm.products"),
    ("the Hessian in bfloat16", "return rows.T @ rows",
     "return (rows.bfloat16().T @ rows.bfloat16()).double()", "plain",
     "sparsegpt.blocks.0.attn_norm.products"),
    ("logits of perplexity in bfloat16", "[:, :-1].double()", "[:, :-1].bfloat16().double()",
     "gemma2", "dense.perplexity", ABOVE_BFLOAT16),
)  # fmt: skip

AREAS = {
    "forward": FORWARD,
    "experiment": EXPERIMENT,
    "signals": SIGNALS,
    "allocation": ALLOCATION,
    "Wanda": WANDA,
    "SparseGPT": SPARSEGPT,
    "n:m": PATTERN,
    "perplexity": PERPLEXITY,
    "dtypes": DTYPES,
}
MISTAKES: dict[str, Mistake] = {name: x for area in AREAS.values() for name, x in area.items()}


def write_project(folder: Path, mistake: Mistake | None = None) -> None:
    """The sample project in a new folder, with a mistake or without."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mistake is not None:
        file = folder / mistake.file
        text = file.read_text("utf-8").replace(mistake.line, mistake.instead)
        file.write_text(text, "utf-8")


def project(mistake: Mistake | None = None) -> ModuleType:
    """The sample project's candidate.py, imported by itself: other modules keep their names."""
    with tempfile.TemporaryDirectory() as away:
        folder = Path(away) / "project"
        write_project(folder, mistake)
        modules = {path.stem for path in folder.glob("*.py")}
        others = {name: sys.modules.pop(name) for name in modules & sys.modules.keys()}
        with patch.object(sys, "path", [str(folder), *sys.path]):
            try:
                return import_module("candidate")
            finally:
                for name in modules:
                    sys.modules.pop(name, None)
                sys.modules.update(others)


def arrays_of(candidate: ModuleType, case: Case, dtype: str, stepwise: bool = False) -> Arrays:
    """A candidate's arrays, from the tokens or each step from the case's own values."""
    import torch

    compute = candidate.stepwise if stepwise else candidate.candidate
    with torch.inference_mode():
        arrays = compute(case.folder, getattr(torch, dtype), "cpu")
    return {
        name: x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if x.dtype == torch.bfloat16
        else x.numpy()
        for name, x in arrays.items()
    }
