"""The whole method in one file: `python docs/tutorial/pico.py fixtures/toy`.

It reads a small Llama, follows errors through it, measures how much pruning each block harms the
predictions, gives each block a sparsity, prunes to the exact count, and shows what is left.
Shapes: B sequences of S tokens, D channels, H heads of h channels, V ids, L blocks.
"""

import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

# The matrices are small: threads would wait for each other. NumPy reads this when it starts.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from safetensors.numpy import load_file

# A block has seven matrices, its linears. Each reads one of the arrays that the block computes.
READS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attn_norm") | {"o_proj": "attn_heads"}
READS |= {"gate_proj": "mlp_norm", "up_proj": "mlp_norm", "down_proj": "mlp_hidden"}

# A model is a folder: facts, weights, and the id of each token. Here a token is one character.
def read(folder):
    """A Llama's config, weights in float64, and the id of each character."""
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

def start(folder):
    """The model of a folder, 16 sequences to calibrate on, and 16 of another text to test on."""
    folder = Path(folder)
    model = read(folder)
    return model, *(samples(folder / f"{x}.txt", model) for x in ("calibration", "evaluation"))

# 1 The model, from ids to logits (page 1). A norm makes all states equally long.
def rms_norm(x, weight, eps):
    """w x / sqrt(mean(x^2) + eps): each token to a root mean square of 1. [..., D]"""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight

# A rotation tells attention where a token stands: two rotated vectors have a product that depends
# on the distance of their tokens alone.
def rotate(x, theta):
    """Turn channels i and i + h/2 of each head by position * theta^(-2i/h). [B, H, S, h]"""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin, left, right = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

# Attention mixes tokens: each gets a mean of the values of itself and of earlier tokens.
def attention(q, k, v):
    """softmax(q k^T / sqrt(h)) v, each token seeing itself and earlier ones. -> [B, S, H h]"""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    share = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * np.tri(q.shape[2])
    out = share / share.sum(axis=-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(len(q), q.shape[2], -1)

# A block adds attention, and then an MLP, to the stream that it reads.
def block(h, w, model):
    """One block, from h_{l-1} to h_l = `resid_post`, with everything on the way. [B, S, D]"""
    at = {"attn_norm": rms_norm(h, w["input_layernorm"], model.rms_norm_eps)}
    for x in "qkv":
        y = at["attn_norm"] @ w[f"{x}_proj"].T
        at[x] = y.reshape(*y.shape[:2], -1, model.head_dim).swapaxes(1, 2)
    for x in "qk":
        at[f"{x}_rope"] = rotate(at[x], model.rope_parameters["rope_theta"])
    at["attn_heads"] = attention(at["q_rope"], at["k_rope"], at["v"])
    at["attn_out"] = at["attn_heads"] @ w["o_proj"].T
    at["resid_mid"] = h + at["attn_out"]
    at["mlp_norm"] = rms_norm(at["resid_mid"], w["post_attention_layernorm"], model.rms_norm_eps)
    gate, up = at["mlp_norm"] @ w["gate_proj"].T, at["mlp_norm"] @ w["up_proj"].T
    at["mlp_hidden"] = gate / (1 + np.exp(-gate)) * up
    at["mlp_out"] = at["mlp_hidden"] @ w["down_proj"].T
    at["resid_post"] = at["resid_mid"] + at["mlp_out"]
    return at

def forward(ids, model):
    """Logits of the next token. [B, S] -> [B, S, V]"""
    h = model.embed[ids]
    for w in model.blocks:
        h = block(h, w, model)["resid_post"]
    return rms_norm(h, model.final_norm, model.rms_norm_eps) @ model.head.T

# 2 The paper's experiment (pages 2 and 3): perturb a block, and see what arrives at the end.
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
    """r_l = E[R_L / R_l]: what later blocks leave of the drift of block l. [L]"""
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

# 3 Which weights matter (page 4). Wanda needs the weights and what they multiply, no training.
def wanda_scores(w, at):
    """M = |W| sqrt(c), c_j = sum x_j^2 / B: a weight's size times its input's. name: [out, in]"""
    squares = {x: np.square(at[y]).sum(axis=(0, 1)) / len(at[y]) for x, y in READS.items()}
    return {x: np.abs(w[x]) * np.sqrt(squares[x]) for x in READS}

# OWL protects blocks with many outliers among their scores.
def owl(ids, model, sparsity, m=5.0, lam=0.08):
    """s_l = s - p_l + mean(p): a block with more scores above m times their mean loses less. [L]"""
    h, percent = model.embed[ids], []
    for w in model.blocks:
        at = block(h, w, model)
        scores = np.concatenate([x.ravel() for x in wanda_scores(w, at).values()])
        percent.append(100 * np.mean(scores > m * scores.mean()))
        h = at["resid_post"]
    protected = 2 * lam * (percent - np.min(percent)) / np.ptp(percent)
    return sparsity - protected + protected.mean()

# 4 From coefficients to whole numbers of weights (page 5).
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
    """s = clip(x + shift, 0, 1) with the one shift that meets the budget, and exact counts."""
    sizes = [[w[name].size for name in READS] for w in model.blocks]
    whole, low, high = [sum(size) for size in sizes], -2.0, 2.0
    for _ in range(100):
        shift = (low + high) / 2
        s = np.clip(x + shift, 0, 1)
        low, high = (shift, high) if s @ whole < sparsity * sum(whole) else (low, shift)
    zeros = apportion(s * whole, round(Fraction(str(sparsity)) * sum(whole)))
    parts = ([Fraction(n * size, sum(row)) for size in row] for n, row in zip(zeros, sizes))
    return s, [apportion(quotas, n) for quotas, n in zip(parts, zeros)]

# 5 Prune (page 6): block by block, each on what the pruned blocks before it produce.
def wanda_keep(score, n):
    """Which weights stay if each row loses its lowest scores, n in all. [out, in]"""
    each, more = divmod(n, len(score))
    lose = np.full((len(score), 1), each)
    if more:  # the rows whose next weight scores lowest lose one more
        lose[np.argsort(np.sort(score)[:, each], kind="stable")[:more]] += 1
    return np.argsort(np.argsort(score, kind="stable")) >= lose

def pruned(ids, model, counts):
    """The model with as many zeros in each linear as `counts` says. [L, 7] -> model"""
    h, blocks = model.embed[ids], []
    for w, count in zip(model.blocks, counts):
        if any(count):
            scores = wanda_scores(w, block(h, w, model))
            w = w | {x: w[x] * wanda_keep(scores[x], n) for x, n in zip(READS, count)}
        blocks.append(w)
        h = block(h, w, model)["resid_post"]
    return SimpleNamespace(**vars(model) | {"blocks": blocks})

# 6 Measure (pages 6 and 7): how well a model predicts, and how far its predictions moved.
def ln_p(ids, model):
    """Log probability of every next token. [B, S] -> [B, S, V]"""
    z = forward(ids, model)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

def nats(ids, model):
    """-mean ln p(next token) of each sequence. [B]"""
    p = np.take_along_axis(ln_p(ids[:, :-1], model), ids[:, 1:, None], axis=-1)
    return -p[..., 0].mean(axis=1)

def perplexity(ids, model):
    """exp(-mean ln p(next token))."""
    return np.exp(nats(ids, model).mean())

def change(before, after):
    """Percent of change in perplexity, and its uncertainty, from pairs of nats of sequences."""
    d = after - before
    percent = 100 * np.expm1(d.mean())
    return percent, (100 + percent) * d.std(ddof=1) / np.sqrt(len(d))

def divergence(ids, model, other):
    """KL(p || p') = sum p (ln p - ln p'), the mean over the tokens, in nats."""
    ln_p1, ln_p2 = ln_p(ids, model), ln_p(ids, other)
    return np.sum(np.exp(ln_p1) * (ln_p1 - ln_p2), axis=-1).mean()

# 7 The allocation by measured harm (page 7): prune each block alone, then pay one price everywhere.
def harms(ids, model, sparsity):
    """delta_l = the divergence of the model whose block l alone is pruned. [L]"""
    _, counts = allocation(np.full(len(model.blocks), sparsity), model, sparsity)
    each = range(len(counts))
    alone = ([counts[i] if i == one else [0] * 7 for i in each] for one in each)
    return np.array([divergence(ids, model, pruned(ids, model, x)) for x in alone])

def equal_prices(below, at, above, sparsity, step=0.1):
    """s_l = s - ln(delta_l) / kappa: where one more zero costs the same in every block. [L]"""
    kappa = np.median(np.log(above / below)) / (2 * step)
    return sparsity - np.log(at) / kappa

# 8 Everything: allocations with equally many zeros, compared in pairs with the first one.
def compared(desired, model, calibration, test, targets=(0.5, 0.6, 0.7)):
    """Print perplexities of allocations, [targets, L] each by name, and return them by name."""
    print(" " * 20, "".join(f"{100 * s:5.0f} %" for s in targets), "    against the first, %")
    first, found = None, {}
    for name, rows in desired.items():
        counts = [allocation(x, model, s)[1] for x, s in zip(rows, targets)]
        cost = [nats(test, pruned(calibration, model, n)) for n in counts]
        changes = [change(x, y) for x, y in zip(first or cost, cost)]
        text = "  ".join(f"{x:+5.1f} ± {e:.1f}" for x, e in changes if first)
        first, found[name] = first or cost, [float(np.exp(x.mean())) for x in cost]
        print(f"{name:20} {''.join(f'{x:7.2f}' for x in found[name])}   {text}".rstrip())
    return found

def continued(prompt, model, tokens=60):
    """The most likely continuation, one token after another."""
    ids, characters = [model.ids[x] for x in prompt], {i: x for x, i in model.ids.items()}
    for _ in range(tokens):
        ids.append(int(forward(np.array([ids]), model)[0, -1].argmax()))
    return "".join(characters.get(i, "?") for i in ids)

def main(folder, sparsity=0.5, prompt="She had "):
    """Measure, allocate in three ways, prune, and compare predictions and texts."""
    model, calibration, test = start(folder)
    r = absorption_coefficients(calibration, model)
    below, at, above = (harms(calibration[:4], model, sparsity + x) for x in (-0.1, 0, 0.1))
    desired = {
        "uniform": [np.full(len(model.blocks), sparsity)],
        "OWL + absorption": [owl(calibration, model, sparsity) + correction(r)],
        "divergence": [equal_prices(below, at, above, sparsity)],
    }
    found = {name: allocation(x, model, sparsity) for name, (x,) in desired.items()}
    print("block      r   harm", *found)
    for i, (row, sparsities) in enumerate(zip(zip(r, at), zip(*(s for s, _ in found.values())))):
        print("{:5} {:6.3f} {:6.3f} {:7.3f} {:16.3f} {:10.3f}".format(i, *row, *sparsities))
    compared(desired, model, calibration, test, [sparsity])
    print(f"dense: {continued(prompt, model)}")
    for name, (_, counts) in found.items():
        print(f"{name}: {continued(prompt, pruned(calibration, model, counts))}")

if __name__ == "__main__":
    main(sys.argv[1])
