"""Mistakes that a candidate of the oracle could make: the sample project with one edit each.

Each has a case where it shows, and the first step that goes wrong. Where no family's case shows it,
one of `crafted_cases.CRAFTED` does.
"""

import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from unittest.mock import patch

import ml_dtypes
from candidates import PROJECT, Arrays

from refimpl.oracle.case import Case

ALL = ("float64", "float32", "float16", "bfloat16")
ABOVE_16, ABOVE_BFLOAT16 = ALL[:2], ALL[:3]  # where a cast to float16, or to bfloat16, loses bits


class Edit(Protocol):
    """A change of the sample project."""

    def made_in(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Mistake:
    """An edit of the sample project that makes it wrong, in some dtypes of the computation.

    Its text is there once, with each `⟦right→wrong⟧` of it. `step` is the first that goes wrong in
    float64 and float32, on a case of a family or of `CRAFTED`.
    """

    step: str
    edit: str
    case: str
    dtypes: tuple[str, ...] = ALL

    def made_in(self, folder: Path) -> None:
        """Edit the sample project of a folder."""
        right, wrong = (re.sub("⟦(.*?)→(.*?)⟧", rf"\{i}", self.edit, flags=re.S) for i in (1, 2))
        texts = {path: path.read_text("utf-8") for path in folder.glob("*.py")}
        assert sum(text.count(right) for text in texts.values()) == 1, right
        (file,) = (path for path, text in texts.items() if right in text)
        file.write_text(texts[file].replace(right, wrong), "utf-8")


def mistakes(*rows: str | tuple[Any, ...]) -> dict[str, Mistake]:
    """Mistakes by name: a step, rows with its mistakes, the next step and its rows, and so on."""
    table, step = {}, ""
    for row in rows:
        if isinstance(row, str):
            step = row
        else:
            assert row[0] not in table
            table[row[0]] = Mistake(step, *row[1:])
    return table


NORM = "wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale"
LAYER_NORM = 'F.layer_norm(wide, wide.shape[-1:], scale, widened(weights["bias"]), eps)'

FORWARD = mistakes(
    "embed",
    ("OPT's positions from 0", "first_position=⟦2→0⟧", "opt"),
    ("GPT-2's positions from 1", "[first ⟦→+ 1 ⟧: first ⟦→+ 1 ⟧+ ids.shape[1]]", "gpt2"),
    ("Gemma's embedding not scaled",
     "⟦x = x * torch.tensor(x.shape[-1] ** 0.5, dtype=x.dtype)→pass⟧", "gemma2"),
    "blocks.0.attn_norm",
    ("Gemma's norm without the 1", '⟦ + 1 if self.family.norm == "rms+1" else scale→⟧', "gemma2"),
    ("eps omitted", "⟦ + eps→⟧) * scale", "llama"),
    ("eps outside the square root",
     "wide ⟦* torch.rsqrt→/ ⟧(wide.square().mean(-1, keepdim=True)⟦→.sqrt()⟧ + eps)", "llama"),
    ("the default eps, not the model's", '⟦"layer_norm_epsilon", →⟧default=1e-5', "gpt2"),
    ("LayerNorm that does not centre", f'⟦{LAYER_NORM}→{NORM} + widened(weights["bias"])⟧', "opt"),
    ("LayerNorm without its bias", '⟦widened(weights["bias"])→None⟧', "gpt2"),
    ("LayerNorm by n - 1",
     f"⟦{LAYER_NORM}→(wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, keepdim=True) + eps)"
     '.sqrt() * scale + widened(weights["bias"])⟧', "gpt_neox"),
    "blocks.0.q",
    ("no norm of queries and keys", 'Family(NORMS | ATTENTION | MLP⟦ | HEAD_NORMS→⟧)', "qwen3"),
    ("biases of linears omitted", '⟦w.get(f"{name}.bias")→None⟧', "qwen2"),
    ("fused weights split by kind, not by head", 'fused={"qkv": "⟦by head→stacked⟧"}', "gpt_neox"),
    "blocks.0.k",
    ("the queries' norm for keys", 'f"self_attn.⟦{x}_norm→q_norm⟧" for x in "qk"', "gemma3"),
    ("keys and values swapped",
     'zip(⟦LINEARS[:3]→("q_proj", "v_proj", "k_proj")⟧, x.split(sizes), strict=True)', "phi3"),
    "blocks.0.q_rope",
    ("rotation in the opposite direction", "other * cosine ⟦+→-⟧ one * sine", "gpt_neox"),
    ("rotation of neighbouring pairs",
     "⟦x.split([half, half, x.shape[-1] - 2 * half], -1)"
     "→(x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2], x[..., 2 * half :])⟧", "llama"),
    ("RoPE theta 10,000, not the model's", '⟦known["rope_theta"]→10000.0⟧ **', "mistral"),
    ("rotation of all channels", '⟦ * known.get("partial_rotary_factor", 1.0)→⟧', "gpt_neox"),
    ("RoPE of the global blocks everywhere",
     'known[⟦self.fact("layer_types")[index]→"full_attention"⟧]', "gemma3"),
    ("rotary positions from 1", "arange(⟦length→1, length + 1⟧, device=self.device)", "qwen2"),
    ("llama3 scaling omitted", 'known["rope_type"] == "llama3"⟦→ and False⟧', "llama3"),
    ("llama3 scaling of all frequencies", "(slow + (1 - slow) * ⟦factor→1⟧) / factor", "llama3"),
    "blocks.5.q_rope",
    ("linear factor of RoPE omitted", 'frequencies = frequencies⟦ / factor→⟧', "gemma3"),
    "blocks.0.attn_out",
    ("key-value heads tiled, not repeated",
     "x.⟦repeat_interleave(groups, 1)→repeat(1, groups, 1, 1)⟧", "llama"),
    ("attention logits scaled by head_dim",
     '⟦model.fact("query_pre_attn_scalar", default=q.shape[-1])→q.shape[-1]⟧', "gemma2"),
    ("no cap on attention logits", '⟦model.fact("attn_logit_softcapping")→None⟧', "gemma2"),
    ("a mask that shows the next token", "(back < ⟦0→-1⟧) if window is None", "phi3"),
    ("a window one token longer", "back ⟦>=→>⟧ window", "mistral"),
    ("a window one token shorter", "back >= window⟦→ - 1⟧", "mistral"),
    ("a window of the first 16 tokens only",
     "(back < 0) | (back >= window)⟦→ & (place < 16)⟧", "long"),
    ("no window", 'return ⟦self.fact("sliding_window")→None⟧', "gemma3"),
    ("the wrong blocks windowed", 'kinds[index] ⟦!=→==⟧ "sliding_attention"', "gemma2"),
    ("softmax over queries", ".softmax(⟦-1→-2⟧)", "gpt2"),
    ("no norm after attention", '⟦"attn_post_norm": "post_attention_layernorm",→⟧', "gemma2"),
    "blocks.1.attn_out",
    ("a window in every block",
     'if ⟦kinds is not None and kinds[index] != "sliding_attention"→False⟧:', "gemma2"),
    "blocks.0.mlp_out",
    ("no norm after the MLP", '⟦"mlp_post_norm": "post_feedforward_layernorm",→⟧', "gemma3"),
    ("exact GELU instead of the tanh form",
     '"gelu_new": ⟦lambda x: F.gelu(x, approximate="tanh")→F.gelu⟧', "gpt2"),
    ("tanh form instead of exact GELU",
     '"gelu": ⟦F.gelu→lambda x: F.gelu(x, approximate="tanh")⟧,', "gpt_neox"),
    ("exact GELU instead of Gemma's tanh form",
     '"gelu_pytorch_tanh": ⟦lambda x: F.gelu(x, approximate="tanh")→F.gelu⟧', "gemma2"),
    ("sigmoid form of GELU",
     '"gelu_new": lambda x: ⟦F.gelu(x, approximate="tanh"→x * torch.sigmoid(1.702 * x⟧)', "gpt2"),
    ("GELU instead of SiLU", '"silu": F.⟦silu→gelu⟧', "qwen3"),
    ("GELU instead of ReLU", '"relu": F.⟦relu→gelu⟧', "opt"),
    ("the activation on the wrong half",
     '⟦act(linear("gate_proj", y)) * linear("up_proj", y)'
     '→linear("gate_proj", y) * act(linear("up_proj", y))⟧', "mistral"),
    ("gate and up swapped", '⟦("gate_proj", "up_proj")→("up_proj", "gate_proj")⟧, x.chunk', "phi3"),
    "blocks.0.mlp_norm",
    ("attention and MLP in sequence", "⟦x if model.family.parallel else →⟧middle", "gpt_neox"),
    ("attention and MLP in parallel", "x⟦ if model.family.parallel else middle→⟧", "llama"),
    "blocks.0.resid_post",
    ("the residual from before attention", 'seen["resid_post"] = ⟦middle→x⟧ + y', "qwen2"),
    "final_norm",
    ("no final norm", "return ⟦model.norm(x, model.top(model.family.final_norm))→x⟧", "qwen3"),
    "logits",
    ("embedding used as an untied head",
     "weight = ⟦model.top(model.family.head) or →⟧model.top(model.family.embed)", "llama"),
    ("no cap on the final logits", 'cap := ⟦model.fact("final_logit_softcapping")→None⟧', "gemma2"),
    ("attention's cap on the final logits",
     '(cap := model.fact("⟦final_logit_softcapping→attn_logit_softcapping⟧"))', "gemma2"),
)  # fmt: skip

EXPERIMENT = mistakes(
    "perturbed.0.drift",
    ("a perturbation that is not scaled", 'recipe["eta"] ⟦* size →⟧/ unit', "qwen2"),
    ("a perturbation of eta per channel", '* size / ⟦unit→noise.shape[-1] ** 0.5⟧', "qwen2"),
    ("a perturbation before the block", "experiment(model, blocks, ⟦after→before⟧,", "phi3"),
    ("drift relative to the perturbed state", "(a - b).norm(dim=-1) / ⟦b→a⟧.norm(dim=-1)", "gpt2"),
    ("drift that is not relative", "(a - b).norm(dim=-1)⟦ / b.norm(dim=-1)→⟧", "opt"),
    ("drift of the largest channel",
     "(a - b).norm(⟦→torch.inf, ⟧dim=-1) / b.norm(⟦→torch.inf, ⟧dim=-1)", "gpt_neox"),
    ("sinks included", 'if ⟦sink == "include"→True⟧:', "sink"),
    ("sinks found by the mean norm", "norm.⟦quantile(0.5, dim=-1→mean(-1⟧, keepdim=True)", "sink"),
    ("all tokens in one mean", "return ⟦means[count > 0]→x[valid]⟧.mean()", "sink"),
    ("median over tokens", "return ⟦means[count > 0].mean()→x[valid].median()⟧", "gpt2"),
    "perturbed.1.drift",
    ("the same noise after every block", "noise[⟦i→0⟧].double()", "llama"),
    "perturbed.0.alignment",
    ("alignment divided by one norm twice",
     "sizes = ⟦a.norm(dim=-1) * b.norm(dim=-1)→b.norm(dim=-1).square()⟧", "gemma3"),
    ("alignment of the perturbation",
     "(⟦a→(a - b)⟧ * b).sum(-1) / ⟦sizes→((a - b).norm(dim=-1) * b.norm(dim=-1))⟧", "gpt_neox"),
    "absorption_coefficient",
    ("inverse ratio", "⟦effects[-1][0] / effects[0][0]→effects[0][0] / effects[-1][0]⟧", "qwen2"),
    ("geometric mean of ratios",
     "coefficients.append(meaned(ratio⟦→.log()⟧, ratio.isfinite())⟦→.exp()⟧)", "phi3"),
    ("ratio at the next block, not the last", "ratio = effects[⟦-1→min(1, last - i)⟧][0]", "llama"),
)  # fmt: skip

COARSE = mistakes(
    "pruned.absorption_coefficient",
    ("mean before the ratio", "effects[-1][0] / effects[0][0]⟦→.mean()⟧", "gemma3"),
    "coarse.stderr",
    ("standard error by n, not n - 1", "/ max(⟦n - 1→n⟧, 0) / n)", "llama"),
    ("standard deviation, not of the mean", "/ max(n - 1, 0)⟦ / n→⟧)", "opt"),
    "coarse.0.drift",
    ("the first draw twice", "torch.stack(⟦draws→draws[:1] * len(draws)⟧, 1)", "phi3"),
    "pruned.counts",
    ("pruned at the corrected allocation", 'read(f"{first}.⟦base→corrected⟧").tolist()', "qwen3"),
    "pruned.0.drift",
    ("pruned by the block and its input",
     "pruned = passed(model, i, changed, ⟦before[i]→after[i]⟧)", "llama"),
    "pruned.divergence",
    ("KL of the clean from the perturbed",
     "(⟦clean.exp() * (clean - other)→other.exp() * (other - clean)⟧)", "gpt2"),
    ("the reverse sign of KL", "(clean.exp() * (⟦clean - other→other - clean⟧))", "mistral"),
    ("KL of the logits", "head(model, final_norm(model, x)).double()⟦.log_softmax(-1)→⟧", "qwen2"),
    ("KL without the final norm", "head(model, ⟦final_norm(model, x)→x⟧).double()", "llama"),
    "divergence.corrected",
    ("errors relative to their arithmetic mean",
     "middle = ⟦mean(known)→log(mean([exp(v) for v in known]))⟧ if known", "opt"),
    "magnitude.blocks.0.q_proj.keep",
    ("magnitude by rows",
     "keep[name] = ⟦~lowest(score.flatten(), count).reshape(score.shape)→"
     "wanda_keep(score, count)⟧\n            else", "llama"),
    ("magnitude with the sign", "score = weight.double()⟦.abs()→⟧\n", "phi3"),
    "sparsegpt_pattern.blocks.0.q_proj.keep",
    ("groups of SparseGPT along the outputs",
     "keep[:, group] = pattern_keep(near⟦→.T⟧, *pattern)⟦→.T⟧", "llama"),
    ("n:m by Wanda's scores", "near = (w[:, group]⟦ / u.diagonal()[group]→⟧)", "mistral"),
    ("all groups decided at the first column",
     "near = (⟦w→weight⟧[:, group] / u.diagonal()[group])", "qwen3"),
)  # fmt: skip

SIGNALS = mistakes(
    "owl.signal",
    ("OWL with a median, not a mean", "OWL_M * scores.⟦mean→median⟧()", "phi3"),
    ("OWL with m = 3", "OWL_M = ⟦5.0→3.0⟧", "llama"),
    ("OWL as a fraction, not a percentage", "⟦100 * →⟧(scores >", "qwen2"),
    ("OWL's outliers per linear",
     'outliers.append(⟦outlier_percent(scores)→torch.stack([outlier_percent(x) for x in '
     'scores.split([stored[f"{k}.weight"].numel() for k in linears(stored)])]).mean()⟧)',
     "mistral"),
    ("OWL with >=, not >", "scores ⟦>→>=⟧ OWL_M", "exact"),
    ("scores without the square root", ".abs() * (total / sequences)⟦.sqrt()→⟧", "gpt2"),
    ("scores without activations",
     "weight.double().abs()⟦ * (total / sequences).sqrt()→.expand(-1, len(total))⟧", "opt"),
    ("o_proj scored by the input of attention", '"o_proj": "⟦attn_heads→attn_norm⟧"', "llama"),
    ("statistics of one sequence only",
     "x⟦→[:1]⟧.double().square().sum((0, 1))⟦→ * len(x)⟧", "gemma2"),
    ("variance instead of the mean square",
     "⟦x→(x - x.mean((0, 1)))⟧.double().square().sum", "opt"),
    "dlp.signal",
    ("sums not divided by the sequences", "⟦(total / sequences)→total⟧.sqrt()", "opt"),
    ("DLP with a median, not a mean", "typical.append(scores.⟦mean→median⟧())", "phi3"),
    ("DLP with a root mean square", "typical.append(scores.⟦mean→square().mean().sqrt⟧", "gemma2"),
    "alphapruning.signal",
    ("AlphaPruning with the intended xmin", "⟦torch.log10(0.95 * left)→0.95 * left⟧", "qwen3"),
    ("singular values not squared", "values[values > floor]⟦.square()→⟧", "llama"),
    ("exponent minus 1", "best, found = float(distance), float(exponent)⟦→ - 1⟧", "phi3"),
    ("exponent from n - 1", "exponent = 1 + ⟦n→(n - 1)⟧ /", "gemma3"),
    ("histogram of 50 bins", "BINS = ⟦100→50⟧", "mistral"),
    "alphapruning_mid.signal",
    ("the tail from the last quarter", "spectrum[count // ⟦2→4 * 3⟧ :].log()", "llama"),
    "dlp_median.signal",
    ("the lower median", "scores.⟦quantile(0.5)→median()⟧", "qwen2"),
    "alphapruning.signal",
    ("distance of the tail from above",
     "torch.arange(n, dtype=torch.float64)⟦→.add(1)⟧ / n", "opt"),
)  # fmt: skip

ALLOCATION = mistakes(
    "owl.base",
    ("OWL's spread halved", "⟦2 * →⟧OWL_LAMBDA * v", "llama"),
    ("OWL's outliers pruned more",
     'return [sparsity ⟦- v +→+ v -⟧ mean(d) for v in d]\n\n\ndef dlp', "qwen2"),
    ("OWL's outliers not stretched",
     "⟦unit_interval(outliers) or [0.0] * len(sizes)→outliers⟧", "gpt2"),
    ("a base that is not projected",
     "base_sparsity = ⟦project→(lambda x, *_: x)⟧(unprojected, totals, recipe", "light"),
    ("clipped without redistribution",
     "budget = sparsity * sum(sizes)⟦→; shift = sparsity - sum(n * v for n, v in zip(sizes, x)) / "
     "sum(sizes)\n    return [clipped(v + shift, 0, 1) for v in x]⟧", "light"),
    "dlp.base",
    ("DLP with inverted importance", "⟦1 - →⟧u / sum(typical)", "phi3"),
    ("DLP with alpha = 0.1", "DLP_ALPHA, ALPHA_EPSILON = 0.08, ⟦0.15→0.1⟧", "opt"),
    "alphapruning.base",
    ("AlphaPruning with the median of linears",
     "unit_interval([⟦mean(x)→sorted(x)[len(x) // 2]⟧ for x in alphas])", "gemma2"),
    ("AlphaPruning shifted, not scaled", "v * sparsity⟦ * sum(sizes) / spent→⟧", "qwen3"),
    ("AlphaPruning inverted",
     "⟦v * 2 * ALPHA_EPSILON + 1 -→1 + ALPHA_EPSILON - v * 2 *⟧ ALPHA_EPSILON", "gemma3"),
    "atp.base",
    ("ATP upside down", "return [sparsity ⟦+→-⟧ beta *", "gpt2"),
    "owl.corrected",
    ("added to the projected base", "zip(⟦unprojected→base_sparsity⟧, change", "bound"),
    ("opposite sign of the correction", "⟦centre - v→v - centre⟧", "llama"),
    ("correction without its strength", "clipped(⟦strength * →⟧v, -most, most)", "qwen3"),
    ("correction without its limit", "⟦clipped(strength * v, -most, most)→strength * v⟧", "strong"),
    ("logarithms not clipped", "⟦clipped(log(r), -CLIP, CLIP)→log(r)⟧", "amplifying"),
    ("logarithms to base 10", "clipped(log(r)⟦→ / log(10)⟧, -CLIP, CLIP)", "mistral"),
    ("r - 1 instead of its logarithm", "clipped(⟦log(r)→r - 1⟧, -CLIP, CLIP)", "opt"),
    ("correction not centred", "⟦centre - v→-v⟧", "strong"),
    ("corrected allocation not on budget",
     'corrected = ⟦project(moved, totals, recipe["sparsity"])→moved⟧', "strong"),
    ("budget met by a factor",
     'corrected = ⟦project(moved, totals, recipe["sparsity"])'
     '→[x * recipe["sparsity"] * len(moved) / sum(moved) for x in moved]⟧', "strong"),
    "owl.counts",
    ("smallest remainders first", "(⟦whole[i] - quotas[i]→quotas[i] - whole[i]⟧, i)", "llama"),
    ("ties of remainders to the higher index", "(whole[i] - quotas[i], ⟦→-⟧i)", "llama"),
    ("remainders dropped", "for i in ⟦order[: total - sum(whole)]→[]⟧:", "qwen2"),
    ("each linear rounded independently",
     "[⟦shares(n, x)→[round(v * n) for n in x]⟧ for ⟦n→v⟧, x in "
     "zip(⟦apportioned(quotas, total)→s⟧, sizes, strict=True)]", "gpt2"),
    ("counts split equally over linears",
     "⟦Fraction(total * n, sum(sizes))→Fraction(total, len(sizes))⟧", "opt"),
    ("half of a budget rounded up",
     "⟦round(Fraction(str(sparsity)) * sum(blocks))→int(sparsity * sum(blocks) + 0.5)⟧", "half"),
    "uniform.counts",
    ("a budget rounded down", "⟦round→int⟧(Fraction(str(sparsity)) * sum(blocks))", "uneven"),
)  # fmt: skip

WANDA = mistakes(
    "wanda.blocks.1.attn_norm.squares",
    ("calibrated on the dense model", "model.cast(⟦weights→model.stored(index)⟧), x)", "levels"),
    "wanda.blocks.0.attn_heads.squares",
    ("statistics updated within a block",
     "⟦→passed(model, index, model.cast(stored), x, seen)\n            "
     "sums = {point: add(seen[point]) for point in sums}\n            ⟧"
     'weight, point = stored[f"{name}.weight"], READS[name]', "levels"),
    "wanda.blocks.0.q_proj.keep",
    ("Wanda over the matrix",
     "⟦wanda_keep(score, count)→~lowest(score.flatten(), count).reshape(score.shape)⟧", "plain"),
    ("Wanda by columns", "wanda_keep(score⟦→.T⟧, count)⟦→.T.contiguous()⟧", "plain"),
    "pruned.blocks.0.q_proj.keep",
    ("Wanda keeps the lowest", "return rank ⟦>=→<⟧ takes[:, None]", "plain"),
    ("one weight of a row too many", "return rank ⟦>=→>⟧ takes[:, None]", "plain"),
    ("remainder taken from the first rows",
     "takes = each + ⟦lowest(following, more)→(torch.arange(rows) < more)⟧.long()", "uneven"),
    ("remainder not pruned", "    if ⟦more→False⟧:", "uneven"),
    ("remainder taken from the highest rows", "lowest(⟦→-⟧following, more)", "uneven"),
    ("the last of equal scores in a row",
     'order = ⟦→len(score.T) - 1 - ⟧score⟦→.flip(1)⟧.argsort(dim=1, stable=True)\n    if', "tied"),
    ("threshold (<=) instead of a count",
     "⟦rank >= takes→score > score.sort(1).values.gather(1, takes⟧[:, None]⟦→ - 1)⟧", "tied"),
    ("the last of equal rows",
     "⟦→len(score) - 1 - ⟧score⟦→.flip(0)⟧.argsort(stable=True)[:count]", "tied-rows"),
    "wanda.blocks.0.q_proj.weight",
    ("weights not zeroed", "new = weight⟦ * (keep[name] if stays is None else stays)→⟧", "levels"),
)  # fmt: skip

SPARSEGPT = mistakes(
    "sparsegpt.blocks.0.attn_norm.products",
    ("products of one sequence only",
     "x⟦→[:1]⟧.double().flatten(0, 1)⟦→ * len(x) ** 0.5⟧", "plain"),
    ("products of centred inputs", "rows = ⟦x→(x - x.mean((0, 1)))⟧.double()", "plain"),
    "sparsegpt.blocks.0.q_proj.keep",
    ("half the damping", "⟦→0.5 * ⟧damping * h.diagonal()", "plain"),
    ("damping that is not relative", "damping⟦ * h.diagonal().mean()→⟧", "plain"),
    ("damping by each channel", "damping * h.diagonal()⟦.mean()→⟧", "plain"),
    ("the factor of H, not of its inverse", "linalg.cholesky(⟦inverse→h⟧, upper=True)", "plain"),
    ("scores by the inverse's diagonal",
     "(w[:, start:end] / ⟦u.diagonal()→inverse.diagonal().sqrt()⟧[start:end])", "plain"),
    ("scores by size alone", "w[:, start:end]⟦ / u.diagonal()[start:end]→⟧", "plain"),
    ("decided row by row",
     "⟦~lowest(score.flatten(), taken).reshape(score.shape)→wanda_keep(score, taken)⟧", "plain"),
    ("columns by their size",
     "⟦→order = hessian.diagonal().argsort(descending=True)\n                ⟧keep[name], new = "
     "⟦→(y[:, order.argsort()] for y in ⟧sparsegpt(wide⟦→[:, order]⟧, "
     "hessian⟦→[order][:, order]⟧, count, damping)⟦→)⟧", "plain"),
    ("columns from the last to the first",
     "keep[name], new = ⟦→(y.flip(1) for y in ⟧sparsegpt(wide⟦→.flip(1)⟧, "
     "hessian⟦→.flip(0, 1)⟧, count, damping)⟦→)⟧", "plain"),
    ("dead channels scored", "⟦score[:, dead[start:end]] = 0→pass⟧", "dead"),
    ("the last of equal scores",
     "~lowest(score.flatten()⟦→.flip(0)⟧, taken)⟦→.flip(0)⟧.reshape(score.shape)", "tied-rows"),
    "sparsegpt.blocks.0.q_proj.weight",
    ("no compensation", "⟦w[:, i + 1 :] -= error[:, None] * u[i, i + 1 :]→pass⟧", "levels"),
    ("opposite sign of the compensation", "⟦-=→+=⟧ error[:, None] * u[i, i + 1 :]", "levels"),
    ("compensation by the inverse", "-= error[:, None] * ⟦u→inverse⟧[i, i + 1 :]", "levels"),
    ("an error not divided by the factor", "error = w[:, i] * ~keep[:, i]⟦ / u[i, i]→⟧", "levels"),
    ("weights not rounded as the file is",
     '[f"{name}.weight"] = ⟦rounded(new, weight.dtype)→new.to(model.dtype)⟧', "mistral", ABOVE_16),
    "sparsegpt.blocks.0.down_proj.keep",
    ("64 columns at once", "WIDTH = ⟦128→64⟧", "wide-uneven"),
    ("all columns at once", "WIDTH = ⟦128→4096⟧", "wide-uneven"),
    ("compensation within 128 columns only",
     "w[:, i + 1 :⟦→ end⟧] -= error[:, None] * u[i, i + 1 :⟦→ end⟧]", "wide-uneven"),
    ("a count split by columns, rounded up",
     "⟦shares(whole, widths)→[-(-whole * n // columns) for n in widths]⟧", "wide-uneven"),
)  # fmt: skip

PATTERN = mistakes(
    "pattern.blocks.0.q_proj.keep",
    ("N counted as kept", "[:, :⟦→ group - ⟧zeros]", "plain"),
    ("groups along the outputs", "pattern_keep(score⟦→.T⟧, *pattern)⟦→.T⟧", "plain"),
    ("groups of distant channels",
     "groups = score⟦→.unflatten(1, (group, -1)).transpose(1, 2)⟧.reshape(-1, group)", "plain"),
    ("highest of a group pruned",
     "groups.argsort(dim=1, stable=True⟦→, descending=True⟧)", "plain"),
    ("the last of equal scores in a group",
     "order = ⟦groups→group - 1 - groups.flip(1)⟧.argsort(dim=1, stable=True)", "tied"),
)  # fmt: skip

PERPLEXITY = mistakes(
    "dense.perplexity",
    ("perplexity of the token itself", "ids[:, ⟦1:→:-1⟧].flatten()", "gemma3"),
    ("nats instead of perplexity",
     "cross_entropy(logits, ids[:, 1:].flatten())⟦.exp()→⟧", "levels"),
    ("perplexity to base 2", "F.cross_entropy(logits, ids[:, 1:].flatten()).⟦exp→exp2⟧()", "llama"),
    ("mean of perplexities",
     '1:].flatten()⟦→, reduction="none"⟧)⟦→.view(len(ids), -1).mean(1)⟧.exp()⟦→.mean()⟧', "gpt2"),
    ("perplexity divided by one token more",
     '⟦→(⟧F.cross_entropy(logits, ids[:, 1:].flatten()'
     '⟦→, reduction="sum"⟧)⟦→ / ids.numel())⟧.exp()', "opt"),
    "magnitude.perplexity",
    ("perplexity of the dense model", "perplexity(model, ⟦block.after→after[-1]⟧, ids)", "levels"),
)  # fmt: skip

DTYPES = mistakes(
    "blocks.0.q_rope",
    ("RoPE tables in float16",
     "angles.cos()⟦→.half()⟧.to(self.dtype), angles.sin()⟦→.half()⟧.to", "llama", ABOVE_16),
    ("RoPE tables in bfloat16",
     "angles.cos()⟦→.bfloat16()⟧.to(self.dtype), angles.sin()⟦→.bfloat16()⟧.to", "llama",
     ABOVE_BFLOAT16),
    ("RoPE angles in bfloat16", "[:, None] * frequencies⟦→.bfloat16()⟧", "gemma3"),
    "blocks.0.attn_norm",
    ("norms in bfloat16",
     'wide, scale = ⟦widened(x)→x.bfloat16()⟧, '
     '⟦widened(weights["weight"])→weights["weight"].bfloat16()⟧', "qwen2"),
    "blocks.0.attn_out",
    ("softmax in float16", "masked_fill(hidden, -torch.inf).⟦→half().⟧softmax", "phi3"),
    ("softmax in bfloat16", "masked_fill(hidden, -torch.inf).⟦→bfloat16().⟧softmax", "phi3"),
    "blocks.0.resid_mid",
    ("the residual in bfloat16",
     'seen["resid_mid"] = ⟦x + y→(x + y).bfloat16().to(x)⟧', "gpt_neox", ABOVE_BFLOAT16),
    "perturbed.0.drift",
    ("the noise in bfloat16", "noise[i].⟦→bfloat16().⟧double()", "gemma3"),
    ("drift in bfloat16",
     "x.⟦→bfloat16().⟧double() * mask for x in (state", "qwen3", ABOVE_BFLOAT16),
    ("drift in float16", "x.⟦→half().⟧double() * mask for x in (state", "qwen3", ABOVE_16),
    "dlp.signal",
    ("statistics in float16", "x.⟦double→half⟧().square().sum((0, 1))⟦→.double()⟧", "qwen2"),
    "owl.signal",
    ("statistics in bfloat16", "x.⟦double→bfloat16⟧().square().sum((0, 1))⟦→.double()⟧", "qwen2"),
    ("weights scored in bfloat16",
     "weight.⟦→bfloat16().⟧double().abs() * (total / sequences).sqrt()", "gemma2"),
    "alphapruning.signal",
    ("singular values of bfloat16 weights", "weight.⟦→bfloat16().⟧double())", "llama"),
    "owl.corrected",
    ("the coefficient in bfloat16", '("absorption_coefficient")⟦→.bfloat16()⟧.tolist()', "gpt2"),
    "sparsegpt.blocks.0.attn_norm.products",
    ("the Hessian in float16", "⟦rows.T @ rows→(rows.half().T @ rows.half()).double()⟧", "plain"),
    ("the Hessian in bfloat16",
     "return ⟦rows.T @ rows→(rows.bfloat16().T @ rows.bfloat16()).double()⟧", "plain"),
    "dense.perplexity",
    ("logits of perplexity in bfloat16", ":-1].⟦→bfloat16().⟧double()", "gemma2", ABOVE_BFLOAT16),
)  # fmt: skip

AREAS = {
    "forward": FORWARD,
    "experiment": EXPERIMENT,
    "other experiments and pruners": COARSE,
    "signals": SIGNALS,
    "allocation": ALLOCATION,
    "Wanda": WANDA,
    "SparseGPT": SPARSEGPT,
    "n:m": PATTERN,
    "perplexity": PERPLEXITY,
    "dtypes": DTYPES,
}
MISTAKES: dict[str, Mistake] = {name: x for area in AREAS.values() for name, x in area.items()}


def write_project(folder: Path, mistake: Edit | None = None) -> None:
    """The sample project in a new folder, with a mistake or without."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mistake is not None:
        mistake.made_in(folder)


def project(mistake: Edit | None = None) -> ModuleType:
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


def arrays_of(
    candidate: ModuleType, case: Case, dtype: str, stepwise: bool = False, pruners: bool = True
) -> Arrays:
    """A candidate's arrays, from the tokens or each step from the case's own values."""
    import torch

    with torch.inference_mode():
        arrays = candidate.candidate(case.folder, getattr(torch, dtype), "cpu", stepwise, pruners)
    return {
        name: x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if x.dtype == torch.bfloat16
        else x.numpy()
        for name, x in arrays.items()
    }
