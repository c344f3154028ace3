"""Grades the exercises of the tutorial: `grade(mine)`, by the name of your function.

Your function gets what the toy model has there. Its result is compared with the right one, whose
numbers are refimpl's. If it is wrong, known mistakes are tried, and then those of `refimpl check`:
one that gives your numbers is named.
"""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pico

import refimpl
from refimpl.loading.samples import Tokens
from refimpl.oracle.case import computed_case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe

FOLDER = Path("fixtures/toy")
TOLERANCE = 1e-9  # of the largest right number
LIMIT = np.log(3)  # of log r
NOTHING = "nothing to grade yet"


@cache
def toy():
    """What the exercises read: arrays of block 0, drifts, scores, harms, and two models' logits."""
    model = pico.read(FOLDER)
    ids = pico.samples(FOLDER / "calibration.txt", model, 4, 64)
    h, w = model.embed[ids], model.blocks[0]
    at = pico.block(h, w, model)
    _, counts = pico.allocation(np.full(8, 0.5), model, 0.5)
    other = pico.pruned(ids, model, counts)
    state = pico.block(h, other.blocks[0], model)["resid_post"]
    moved, later = (
        pico.block(x, model.blocks[1], model)["resid_post"] for x in (state, at["resid_post"])
    )
    first, last = pico.drift(state, at["resid_post"]), pico.drift(moved, later)
    z, z2 = (pico.forward(ids, x) for x in (model, other))
    score = pico.wanda_scores(w, at)["q_proj"]
    noise = np.random.default_rng(0).standard_normal(h.shape)
    r, percent = np.array([0.2, 0.8, 1.0, 4.0]), np.array([0.3, 0.5, 0.6, 0.2])
    below, above = np.array([0.1, 0.02, 0.03]), np.array([0.5, 0.08, 0.2])
    return SimpleNamespace(**locals())


def length(x):
    return np.linalg.norm(x, axis=-1)


def root_mean_square(x, axis=-1):
    return np.sqrt((x * x).mean(axis, keepdims=True))


def turned(x, theta, layout="halves", direction=1, start=0):
    """Rotate pairs of channels, in one of two layouts, from a first position."""
    half = x.shape[-1] // 2
    positions = np.arange(start, start + x.shape[-2])[:, None]
    angle = direction * positions * theta ** (-np.arange(half) / half)
    halves = layout == "halves"
    a, b = (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])
    out = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return np.concatenate(out, -1) if halves else np.stack(out, -1).reshape(x.shape)


def attended(q, k, v, power=-0.5, later=0, repeated=np.repeat, axis=-1):
    """Attention with another scale, mask, order of heads, or axis of the shares."""
    k, v = (repeated(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    share = np.exp(q @ k.swapaxes(-1, -2) * q.shape[-1] ** power) * np.tri(q.shape[2], k=later)
    out = share / share.sum(axis=axis, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(len(q), q.shape[2], -1)


def tiled(x, groups, axis):
    return np.concatenate([x] * groups, axis)


def noisy(h, noise, eta, axes=-1):
    """Add noise to h, with the lengths of h and of the noise taken over some axes."""
    size, own = (np.sqrt((x * x).sum(axes, keepdims=True)) for x in (h, noise))
    return h + eta * size / own * noise


def scored(w, x, mean=1.0, power=0.5):
    return np.abs(w) * ((x * x).sum(axis=(0, 1)) / mean) ** power


def protected(percent, sparsity, spread, sign=-1, centred=True):
    d = spread * (percent - percent.min()) / np.ptp(percent)
    return sparsity + sign * (d - d.mean() * centred)


def corrected(r, strength, most, sign=-1, log=np.log, limit=LIMIT, centred=True):
    u = np.clip(log(r), -limit, limit)
    return np.clip(sign * strength * (u - u.mean() * centred), -most, most)


def moved(z, z2, mean=np.mean, normal=True):
    """KL(p || p') from two arrays of logits."""
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    a, b = (x - normal * np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, z2))
    return mean((p * (a - b)).sum(-1))


def rate(below, above, width, middle=np.median, log=np.log):
    return middle(log(above / below)) / width


def whole(score, n):
    order = np.argsort(np.argsort(score, axis=None, kind="stable"))
    return order.reshape(score.shape) >= n


# Each exercise: its arguments among the arrays of `toy`, the right function, and what people try.
EXERCISES = {
    "rms_norm": (
        lambda x: (x.h, x.w["input_layernorm"], x.model.rms_norm_eps),
        pico.rms_norm,
        {
            "a sum in place of the mean": lambda h, w, eps: (
                h / np.sqrt((h * h).sum(-1, keepdims=True) + eps) * w
            ),
            "a norm over the whole batch, not over the channels of each token": lambda h, w, eps: (
                h / np.sqrt((h * h).mean() + eps) * w
            ),
            "eps outside the root": lambda h, w, eps: h / (root_mean_square(h) + eps) * w,
            "no eps": lambda h, w, eps: h / root_mean_square(h) * w,
            "no weight": lambda h, w, eps: pico.rms_norm(h, 1, eps),
            "no root": lambda h, w, eps: h / (root_mean_square(h) ** 2 + eps) * w,
        },
    ),
    "attention": (
        lambda x: (x.at["q_rope"], x.at["k_rope"], x.at["v"]),
        pico.attention,
        {
            "no division by the root of h": lambda *x: attended(*x, power=0),
            "a division by h, not by its root": lambda *x: attended(*x, power=-1),
            "tokens see all later ones": lambda *x: attended(*x, later=x[0].shape[2]),
            "tokens see the next one": lambda *x: attended(*x, later=1),
            "keys and values in the order 0 1 0 1, not 0 0 1 1": lambda *x: attended(
                *x, repeated=tiled
            ),
            "shares that sum to 1 over the queries, not the keys": lambda *x: attended(*x, axis=-2),
        },
    ),
    "rotate": (
        lambda x: (x.at["q"], x.model.rope_parameters["rope_theta"]),
        pico.rotate,
        {
            "no rotation": lambda x, theta: x,
            "neighbouring channels, not i and i + h/2": lambda *x: turned(*x, layout="pairs"),
            "a rotation in the opposite direction": lambda *x: turned(*x, direction=-1),
            "positions from 1": lambda *x: turned(*x, start=1),
        },
    ),
    "add_noise": (
        lambda x: (x.h, x.noise, 0.1),
        noisy,
        {
            "one length of the noise per sequence, not per token": lambda *x: noisy(*x, (-2, -1)),
            "noise that is not divided by its own length": lambda h, noise, eta: (
                h + eta * length(h)[..., None] * noise
            ),
            "noise that is not scaled by the state": lambda h, noise, eta: h + eta * noise,
            "noise scaled channel by channel": lambda h, noise, eta: h + eta * h * noise,
            "the noise alone, without the state": lambda h, *x: noisy(h, *x) - h,
        },
    ),
    "drift": (
        lambda x: (x.moved, x.later),
        pico.drift,
        {
            "an error relative to the perturbed state": lambda a, b: length(a - b) / length(a),
            "the length of the error alone": lambda a, b: length(a - b),
            "a difference of lengths, not the length of the difference": lambda a, b: (
                abs(length(a) - length(b)) / length(b)
            ),
            "one number for all tokens": lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b),
            "the mean over the tokens": lambda a, b: pico.drift(a, b).mean(),
        },
    ),
    "coefficient": (
        lambda x: (x.first, x.last),
        lambda first, last: np.mean(last / first),
        {
            "a ratio of means, not a mean of ratios": lambda a, b: b.mean() / a.mean(),
            "the inverse": lambda a, b: np.mean(a / b),
            "a difference": lambda a, b: np.mean(b - a),
            "a ratio per token, without the mean": lambda a, b: b / a,
        },
    ),
    "wanda_score": (
        lambda x: (x.w["q_proj"], x.at["attn_norm"]),
        lambda w, x: scored(w, x, len(x)),
        {
            "the size of the weight alone, which is magnitude pruning": lambda w, x: np.abs(w),
            "no root": lambda w, x: scored(w, x, len(x), 1),
            "a mean over the tokens, too": lambda w, x: scored(w, x, x[..., 0].size),
            "a sum that is not divided by B": scored,
            "a weight with its sign": lambda w, x: scored(w, x, len(x)) * np.sign(w),
            "the mean size of the input": lambda w, x: np.abs(w) * np.abs(x).mean(axis=(0, 1)),
        },
    ),
    "owl_sparsity": (
        lambda x: (x.percent, 0.5, 0.08),
        lambda percent, s, lam: protected(percent, s, 2 * lam),
        {
            "the sign: blocks with outliers lose more": lambda p, s, x: protected(p, s, 2 * x, 1),
            "a spread of lam, not of 2 lam": protected,
            "sparsities whose mean is not the target": lambda p, s, x: protected(
                p, s, 2 * x, centred=False
            ),
        },
    ),
    "correction": (
        lambda x: (x.r, 0.05, 0.04),
        pico.correction,
        {
            "the sign: amplified blocks lose more": lambda *x: corrected(*x, sign=1),
            "log r that is not centred": lambda *x: corrected(*x, centred=False),
            "r in place of its logarithm": lambda *x: corrected(*x, log=np.array),
            "log r that is not limited to log 3": lambda *x: corrected(*x, limit=np.inf),
            "a result that is not limited to `most`": lambda r, x, _: corrected(r, x, np.inf),
        },
    ),
    "keep": (
        lambda x: (x.score, x.score.size // 2),
        pico.wanda_keep,
        {
            "an inverted decision: the lowest scores stay": lambda x, n: ~pico.wanda_keep(x, n),
            "a decision over the whole matrix, not in each row": whole,
            "a decision in each column": lambda x, n: pico.wanda_keep(x.T, n).T,
            "indices, not a decision for each weight": lambda x, n: np.argsort(x, kind="stable")[
                :, n // len(x) :
            ],
        },
    ),
    "divergence": (
        lambda x: (x.z, x.z2),
        moved,
        {
            "the other direction, KL(p' || p)": lambda a, b: moved(b, a),
            "a sum over the tokens, not their mean": lambda a, b: moved(a, b, np.sum),
            "bits in place of nats": lambda a, b: moved(a, b) / np.log(2),
            "a number per token, without the mean": lambda a, b: moved(a, b, np.array),
            "logits in place of ln p": lambda a, b: moved(a, b, normal=False),
        },
    ),
    "kappa": (
        lambda x: (x.below, x.above, 0.2),
        rate,
        {
            "a mean in place of the median": lambda *x: rate(*x, np.mean),
            "no division by the width": lambda a, b, _: rate(a, b, 1),
            "a logarithm to base 10": lambda *x: rate(*x, log=np.log10),
            "a growth of harms, without the logarithm": lambda *x: rate(*x, log=np.array),
            "the sign": lambda a, b, width: rate(b, a, width),
            "a rate per block, without the median": lambda *x: rate(*x, np.array),
        },
    ),
}


HINTS = {
    "rms_norm": (
        "Take the mean of the squares over the last axis, with keepdims=True.",
        "Add eps before you take the root.",
    ),
    "attention": (
        "Four heads of queries read two of keys and values: repeat these along axis 1.",
        "np.tri(S) is 1 where a token may look. At the end, swap H and S, and join H and h.",
    ),
    "rotate": (
        "Cut the last axis into two halves: (a, b) becomes (a cos - b sin, b cos + a sin).",
        "The angles have the shape [S, h/2]: a column of positions times a row of frequencies.",
    ),
    "add_noise": (
        "First give the noise of each token the length 1.",
        "np.linalg.norm(x, axis=-1, keepdims=True) has one length per token.",
    ),
    "drift": (
        "Take the length of the difference, not the difference of the lengths.",
        "Divide by the length of the state without the error.",
    ),
    "coefficient": (
        "Each token has a ratio of its own.",
        "Divide first, and take the mean afterwards.",
    ),
    "wanda_score": (
        "Sum the squares of each input channel over sequences and tokens, and divide by B.",
        "The root of these sums has the shape [in]: NumPy multiplies each row of weights by it.",
    ),
    "owl_sparsity": (
        "Scale the percentages to the range from 0 to 2 lam.",
        "Subtract them from the sparsity, and add their mean.",
    ),
    "correction": (
        "Limit log r to the range from -log 3 to log 3, and then subtract the mean.",
        "Blocks with a large r lose less. At the end, limit the result to `most`.",
    ),
    "keep": (
        "Every row loses n // len(score) weights.",
        "np.argsort(np.argsort(score)) is the rank of each weight in its row, from 0.",
    ),
    "divergence": (
        "ln p is z - ln sum e^z, a sum over the last axis.",
        "Weight ln p - ln p' by p, sum over the last axis, and take the mean over the tokens.",
    ),
    "kappa": (
        "A block's rate is the growth of the logarithm of its harm, divided by the width.",
        "Take the median over the blocks.",
    ),
}
TRIES = dict.fromkeys(HINTS, 0)
STEPS = {  # of a case, which `refimpl check` explains: the name, and the step made of a result
    "rms_norm": ("attn_norm", lambda y, x: y),
    "rotate": ("q_rope", lambda y, x: y),
    "attention": ("attn_out", lambda y, x: y @ x.w["o_proj"].T),
}


@cache
def case():
    """Every step of block 0, of two sequences."""
    model, ids = refimpl.read_model(FOLDER), toy().ids[:2]
    tokens = Tokens(ids, "the toy model's text", "ids")
    return computed_case(model, tokens, Recipe(only=("blocks.0.*",)))


def explained(name, found):
    """What the oracle says about a result, if the exercise is a step of it."""
    step, made = STEPS[name]
    step, steps = f"blocks.0.{step}", case().expected
    candidate = {**steps, step: made(np.asarray(found)[:2], toy())}
    (result,) = check(case(), candidate, only=(step,)).steps
    return result.diagnosis


def error(found, right):
    """The largest difference, relative to the largest right number; infinite for another shape."""
    a, b = np.asarray(found), np.asarray(right)
    if a.shape != b.shape or a.dtype.kind not in "bif":
        return np.inf
    worst = np.abs(a.astype(float) - b).max() / np.abs(b).max()
    return worst if np.isfinite(worst) else np.inf


def verdict(mine, name):
    """What to say about a function, and whether it is right."""
    arguments, truth, mistakes = EXERCISES[name]
    given = arguments(toy())
    right = np.asarray(truth(*given))
    try:
        found = mine(*(x.copy() if isinstance(x, np.ndarray) else x for x in given))
    except Exception as problem:
        return f"your function raises {type(problem).__name__}: {problem}", False
    if found is None:
        return f"{NOTHING}. Replace the three dots.", False
    if error(found, right) <= TOLERANCE:
        return f"right. It agrees with refimpl on {right.size:,} numbers.", True
    for words, wrong in mistakes.items():
        if error(found, wrong(*given)) <= TOLERANCE:
            return f"not yet. Your numbers are those of a known mistake: {words}.", False
    if np.shape(found) != right.shape:
        return f"not yet. The shape is {np.shape(found)}, and should be {right.shape}.", False
    words = f"not yet. The error is {error(found, right):.2g} of the largest number."
    cause = explained(name, found) if name in STEPS else ""
    return f"{words} refimpl check says: {cause}." if cause else words, False


def grade(mine):
    """Say whether a function of the learner's is right; if it is not, name the mistake, and hint.

    The first try that is wrong gets the first hint, and each later one the second, too.
    """
    name = mine.__name__
    if name not in EXERCISES:
        print(f"{name}: no exercise. These are: {', '.join(EXERCISES)}")
        return
    words, is_right = verdict(mine, name)
    print(f"{name}: {words}")
    if not is_right:
        TRIES[name] += not words.startswith(NOTHING)
        for number, hint in enumerate(HINTS[name][: max(1, TRIES[name])], 1):
            print(f"Hint {number}: {hint}")
