"""Layer-wise sparsity in one file: `python docs/tutorial/pico.py fixtures/toy`.

It reads a Llama of letters, perturbs the output of each block, follows the perturbation to the
last block, corrects OWL's allocation with the result, prunes by Wanda to the exact count, and shows
the cost. Shapes: B sequences of S tokens, D channels, H heads of h channels, V ids, L blocks.
"""

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file

# Which of a block's arrays each of its linears reads.
READS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attn_norm") | {"o_proj": "attn_heads"}
READS |= {"gate_proj": "mlp_norm", "up_proj": "mlp_norm", "down_proj": "mlp_hidden"}

def read(folder):
    """A Llama's config, weights in float64, and the id of each letter."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    model = SimpleNamespace(blocks=[{} for _ in range(config["num_hidden_layers"])], **config)
    file = {n: w.astype(np.float64) for n, w in load_file(folder / "model.safetensors").items()}
    for name, weight in file.items():
        if name.startswith("model.layers."):  # model.layers.0.self_attn.q_proj.weight
            model.blocks[int(name.split(".")[2])][name.split(".")[-2]] = weight
    model.embed, model.final_norm = file["model.embed_tokens.weight"], file["model.norm.weight"]
    model.head = file.get("lm_head.weight", model.embed)
    vocab = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    model.ids = {x.replace("Ġ", " ").replace("Ċ", "\n"): i for x, i in vocab.items()}
    return model

def samples(path, model, count=16, length=128):
    """Sequences of ids, spread evenly over a text. [B, S]"""
    ids = np.array([model.ids[x] for x in path.read_text("utf-8")])
    return np.stack([ids[i * (len(ids) - length) // (count - 1) :][:length] for i in range(count)])

# The model: from token ids to logits
def rms_norm(x, weight, eps):
    """w x / sqrt(mean(x^2) + eps): each token to a root mean square of 1. [..., D]"""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight

def rotate(x, theta):
    """Turn channels i and i + h/2 of each head by position * theta^(-2i/h). [B, H, S, h]"""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin, a, b = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

def attention(q, k, v):
    """softmax(q k^T / sqrt(h)) v, each token seeing itself and earlier ones. -> [B, S, H h]"""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    p = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * np.tri(q.shape[2])
    out = p / p.sum(axis=-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(len(q), q.shape[2], -1)

def block(h, w, model):
    """One block, from h_{l-1} to h_l = `resid_post`, with everything on the way. [B, S, D]"""
    t = {"attn_norm": rms_norm(h, w["input_layernorm"], model.rms_norm_eps)}
    for x in "qkv":
        y = t["attn_norm"] @ w[f"{x}_proj"].T
        t[x] = y.reshape(*y.shape[:2], -1, model.head_dim).swapaxes(1, 2)
    t["q_rope"], t["k_rope"] = (rotate(t[x], model.rope_parameters["rope_theta"]) for x in "qk")
    t["attn_heads"] = attention(t["q_rope"], t["k_rope"], t["v"])
    t["attn_out"] = t["attn_heads"] @ w["o_proj"].T
    t["resid_mid"] = h + t["attn_out"]
    t["mlp_norm"] = rms_norm(t["resid_mid"], w["post_attention_layernorm"], model.rms_norm_eps)
    gate, up = t["mlp_norm"] @ w["gate_proj"].T, t["mlp_norm"] @ w["up_proj"].T
    t["mlp_hidden"] = gate / (1 + np.exp(-gate)) * up
    t["mlp_out"] = t["mlp_hidden"] @ w["down_proj"].T
    t["resid_post"] = t["resid_mid"] + t["mlp_out"]
    return t

def forward(ids, model):
    """Logits of the next token. [B, S] -> [B, S, V]"""
    h = model.embed[ids]
    for w in model.blocks:
        h = block(h, w, model)["resid_post"]
    return rms_norm(h, model.final_norm, model.rms_norm_eps) @ model.head.T

# The method: perturb each block, and see what arrives at the end
def perturbed(h, i, eta, seed):
    """h' = h + e after block i, e random with ||e_t|| = eta ||h_t|| for each token t. [B, S, D]"""
    keys = (np.random.SeedSequence(seed, spawn_key=(b, i, 0)) for b in range(len(h)))
    draws = (np.random.Generator(np.random.Philox(k)).standard_normal(h.shape[1:]) for k in keys)
    e = np.stack([*draws])
    size, length = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (h, e))
    return h + eta * size / length * e

def drift(state, clean):
    """R = ||h' - h|| / ||h|| of each token. [B, S]"""
    return np.linalg.norm(state - clean, axis=-1) / np.linalg.norm(clean, axis=-1)

def absorption_coefficients(ids, model, eta=0.01, seed=0):
    """r_l = E[R_L / R_l]: below 1, later blocks absorb a perturbation of block l. [L]"""
    clean, r = [model.embed[ids]], []
    for w in model.blocks:
        clean.append(block(clean[-1], w, model)["resid_post"])
    for i, h in enumerate(clean[1:]):
        state = perturbed(h, i, eta, seed)
        first = drift(state, h)
        for w in model.blocks[i + 1 :]:
            state = block(state, w, model)["resid_post"]
        r.append(np.mean(drift(state, clean[-1]) / first))
    return np.array(r)

def wanda_scores(w, t):
    """M = |W| sqrt(c), c_j = sum x_j^2 / B: a weight's size times its input's. name: [out, in]"""
    square = {x: np.square(t[point]).sum(axis=(0, 1)) / len(t[point]) for x, point in READS.items()}
    return {x: np.abs(w[x]) * np.sqrt(square[x]) for x in READS}

def owl(ids, model, sparsity, m=5.0, lam=0.08):
    """s_l = S - d_l + mean(d): a block with more scores above m times their mean loses less. [L]"""
    h, percent = model.embed[ids], []
    for w in model.blocks:
        t = block(h, w, model)
        scores = np.concatenate([x.ravel() for x in wanda_scores(w, t).values()])
        percent.append(100 * np.mean(scores > m * scores.mean()))
        h = t["resid_post"]
    d = 2 * lam * (percent - np.min(percent)) / np.ptp(percent)
    return sparsity - d + d.mean()

def correction(r, strength=0.05, most=0.1):
    """c = clip(-strength (u - mean u)), u = clip(log r): what is amplified is protected. [L]"""
    u = np.clip(np.log(r), -np.log(3), np.log(3))
    return np.clip(-strength * (u - u.mean()), -most, most)

def apportion(quotas, total):
    """Whole numbers that sum to a total: round down, then one more by largest remainder."""
    count = [int(q) for q in quotas]
    order = sorted(range(len(count)), key=lambda u: count[u] - quotas[u])
    return [n + (u in order[: total - sum(count)]) for u, n in enumerate(count)]

def allocation(x, model, sparsity):
    """s = clip(x + t, 0, 1) with the one t that prunes the fraction asked for, and exact counts."""
    sizes = [[w[name].size for name in READS] for w in model.blocks]
    whole, low, high = [sum(size) for size in sizes], -2.0, 2.0
    for _ in range(100):
        t = (low + high) / 2
        s = np.clip(x + t, 0, 1)
        low, high = (t, high) if s @ whole < sparsity * sum(whole) else (low, t)
    pruned = apportion(s * whole, round(Fraction(str(sparsity)) * sum(whole)))
    parts = ([Fraction(n * size, sum(row)) for size in row] for n, row in zip(pruned, sizes))
    return s, [apportion(quotas, n) for quotas, n in zip(parts, pruned)]

# Pruning, and what it costs
def wanda_keep(score, n):
    """Which weights stay if each row loses its lowest scores, n in all. [out, in]"""
    each, more = divmod(n, len(score))
    lose = np.full((len(score), 1), each)
    if more:  # the rows whose next weight scores lowest lose one more
        lose[np.argsort(np.sort(score)[:, each], kind="stable")[:more]] += 1
    return np.argsort(np.argsort(score, kind="stable")) >= lose

def pruned(ids, model, per_linear):
    """The model without the weights that matter least, each block reading the pruned ones."""
    h, blocks = model.embed[ids], []
    for w, count in zip(model.blocks, per_linear):
        scores = wanda_scores(w, block(h, w, model))
        blocks.append(w | {x: w[x] * wanda_keep(scores[x], n) for x, n in zip(READS, count)})
        h = block(h, blocks[-1], model)["resid_post"]
    return SimpleNamespace(**vars(model) | {"blocks": blocks})

def ln_p(ids, model):
    """Log probability of every next token. [B, S] -> [B, S, V]"""
    z = forward(ids, model)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

def perplexity(ids, model):
    """exp(-mean ln p(next token))."""
    return np.exp(-np.take_along_axis(ln_p(ids[:, :-1], model), ids[:, 1:, None], axis=-1).mean())

def divergence(ids, model, other):
    """KL(p || p') = sum p (ln p - ln p'), the mean over the tokens."""
    a, b = ln_p(ids, model), ln_p(ids, other)
    return np.sum(np.exp(a) * (a - b), axis=-1).mean()

def continued(prompt, model, tokens=40):
    """The most likely continuation, one token after another."""
    ids, letter = [model.ids[x] for x in prompt], {i: x for x, i in model.ids.items()}
    for _ in range(tokens):
        ids.append(int(forward(np.array([ids]), model)[0, -1].argmax()))
    return "".join(letter.get(i, "?") for i in ids)

def main(folder, sparsity=0.6, prompt="She had "):
    """Score, allocate, prune and compare: measured on one text, evaluated on another."""
    model = read(folder)
    seen, unseen = (samples(folder / f"{x}.txt", model) for x in ("calibration", "evaluation"))
    r, base = absorption_coefficients(seen, model), owl(seen, model, sparsity)
    s, per_linear = allocation(base + correction(r), model, sparsity)
    print("block      r    OWL  corrected  pruned")
    for i, row in enumerate(zip(r, base, s, map(sum, per_linear))):
        print("{:5} {:6.3f} {:6.3f} {:10.3f} {:7,}".format(i, *row))
    for name, x in (("dense", model), ("pruned", pruned(seen, model, per_linear))):
        print(f"{name}: perplexity {perplexity(unseen, x):.2f}. {continued(prompt, x)}")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
