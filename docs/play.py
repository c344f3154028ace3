"""The figures that one can play with: `python docs/play.py [FOLDER]` writes their numbers.

They go into docs/play.html, beside static pictures for readers without scripts, which are also
docs/tutorial/travel.svg and price.svg. The numbers of the toy model are computed anew. Those of
three real models, and docs/results/claim.json, need six minutes of processor time, and a FOLDER
with the models and the text of docs/how-to/real-models.md; without it, they stay as they are.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import refimpl
from refimpl.loading.text import text_tokens
from refimpl.method.perturbation import noise
from refimpl.model.forward import block, embed, places
from refimpl.model.model import Model
from refimpl.model.ops import Array

HERE = Path(__file__).parent
TUTORIAL, RESULTS = HERE / "tutorial", HERE / "results"
TOY = HERE.parent / "fixtures" / "toy"
sys.path.append(str(TUTORIAL))
import pico  # noqa: E402

MODELS = ("SmolLM2-135M-Instruct", "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct")
TEXT = "text/sotu-1901-1979.txt"
NOISE = ("all tokens", "all but the first")
RED, BLUE, GREY = "#d1652a", "#2b7bba", "#7a7f85"
ALPHABET = "".join(chr(i) for i in range(35, 126) if chr(i) not in "&'<>\\`")
RANGE = 4.0  # of logarithms that two characters can say
Rows = dict[str, Array]


def length(x: Array) -> Array:
    """Return the length of each token's vector."""
    return np.linalg.norm(x.astype(np.float64), axis=-1)


def travel(model: Model, ids: Array, eta: float, spared: int = 0, omitted: int = 0) -> Rows:
    """Perturb each block, and follow the error: means over tokens, [perturbed block, block].

    `drift` is E[R_k / R_l], `grown` is E[||e_k|| / ||e_l||] and `passed` E[||h_l|| / ||h_k||];
    `error` is E ||e_k|| / E ||e_l||, and `size` is E ||h_k||, [block]. The first `spared` tokens of
    a sequence get no noise, and the first `omitted` ones are not in the means.
    """
    config, dtype = model.config, np.float32 if omitted else np.float64
    positions, count = np.arange(ids.shape[1]), config.num_blocks
    place = places(positions, config, dtype)
    clean = [embed(ids, positions, model.embedding(), config, dtype)]
    weights = [model.block(i, dtype) for i in range(count)]
    for w, kind in zip(weights, config.blocks, strict=True):
        clean.append(block(clean[-1], w, place[kind], config))
    sizes = [length(state.stream) for state in clean[1:]]
    found = {x: np.full((count, count), np.nan) for x in ("drift", "grown", "passed", "error")}
    for i, h in enumerate(clean[1:]):
        e = np.stack([noise(0, b, i, 0, h.stream.shape[1:]) for b in range(len(ids))])
        e *= (eta * sizes[i] / length(e))[..., None]
        e[:, :spared] = 0
        state, starts = h.with_stream(h.stream + e.astype(dtype)), None
        for k in range(i, count):
            if k > i:
                state = block(state, weights[k], place[config.blocks[k]], config)
            error = length(state.stream.astype(np.float64) - clean[k + 1].stream)[:, omitted:]
            size = sizes[k][:, omitted:]
            starts = starts or (error, size)
            found["drift"][i, k] = np.mean(error / size / (starts[0] / starts[1]))
            found["grown"][i, k] = np.mean(error / starts[0])
            found["passed"][i, k] = np.mean(starts[1] / size)
            found["error"][i, k] = error.mean() / starts[0].mean()
    return {**found, "size": np.array([x[:, omitted:].mean() for x in sizes])}


def coded(numbers: Array) -> str:
    """Write logarithms of numbers with two characters each, to 0.1 %."""
    steps = np.round((np.log(numbers) + RANGE) / (2 * RANGE) * (len(ALPHABET) ** 2 - 1)).astype(int)
    assert steps.min() >= 0
    assert steps.max() < len(ALPHABET) ** 2
    return "".join(ALPHABET[n // len(ALPHABET)] + ALPHABET[n % len(ALPHABET)] for n in steps)


def figure(name: str, etas: dict[str, Rows]) -> dict[str, Any]:
    """Return a model's part of the first figure: pairs of perturbed and later block, in order."""
    one = next(iter(etas.values()))
    later = np.triu_indices(len(one["size"]), 1)
    both = {eta: np.stack([x["error"][later], x["drift"][later]], 1) for eta, x in etas.items()}
    texts = [[eta, coded(x.ravel())] for eta, x in both.items()]
    size = [float(f"{x:.4g}") for x in one["size"]]
    return {"name": name, "size": size, "pass": coded(one["passed"][later]), "eta": texts}


def toy_travel() -> dict[str, Any]:
    """Return the toy model's part: noise of five sizes on 16 x 128 characters."""
    ids = pico.samples(TOY / "calibration.txt", pico.read(TOY))
    model = refimpl.read_model(TOY)
    etas = {f"{100 * eta:g} %": travel(model, ids, eta) for eta in (0.01, 0.1, 0.3, 1, 3)}
    return figure("toy model", etas)


def toy_prices() -> list[dict[str, Any]]:
    """Return the toy model's part of the second figure, at three sparsities."""
    model, calibration, _ = pico.start(TOY)
    harm = {s: pico.harms(calibration[:4], model, s / 10) for s in (4, 5, 6, 7, 8)}
    found = []
    for s in (5, 6, 7):
        kappa = float(np.median(np.log(harm[s + 1] / harm[s - 1])) / 0.2)
        values = [float(f"{x:.3g}") for x in harm[s]]
        found.append({"name": "toy model", "s": s / 10, "kappa": round(kappa, 2), "harm": values})
    return found


def smollm2_price() -> dict[str, Any]:
    """Return SmolLM2's part, from the numbers of docs/results: its allocation gives kappa."""
    known = json.loads((RESULTS / "smollm2.json").read_text("utf-8"))["pruned"]
    harm, allocated = np.array(known["divergence"][0]), np.array(known["allocated"][0])
    kappa = -1 / np.polyfit(np.log(harm), allocated, 1)[0]
    values = [float(f"{x:.3g}") for x in harm]
    return {"name": "SmolLM2-135M", "s": 0.6, "kappa": round(float(kappa), 2), "harm": values}


def real(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure three real models, on 4 x 128 tokens in float32.

    Returns the rows of docs/results/claim.json, and SmolLM2's parts of the first figure. The means
    omit the first token of a sequence, which may be a sink.
    """
    rows, figures = list[dict[str, Any]](), list[dict[str, Any]]()
    for name in MODELS:
        model = refimpl.read_model(folder / name)
        ids = text_tokens(folder / TEXT, folder / name / "tokenizer.json", 4, 128).ids
        for spared in (0, 1):
            etas = {eta: travel(model, ids, eta, spared, 1) for eta in (0.01, 1.0)}
            for eta, x in etas.items():
                last = {y: np.round(x[y][:, -1], 4).tolist() for y in ("drift", "passed", "grown")}
                rows.append({"model": name, "noise on": NOISE[spared], "eta": eta, **last})
            if name == MODELS[0]:
                shown = {
                    f"{100 * eta:g} %": x for eta, x in etas.items() if eta == 0.01 or not spared
                }
                figures.append(figure(f"SmolLM2-135M, noise on {NOISE[spared]}", shown))
                figures[-1]["pass"] = figures[0]["pass"] if not spared else ""  # the same lengths
    return rows, figures


def picture(label: str, texts: list[tuple[float, float, str, str]], paths: str) -> str:
    """Return an SVG picture with some texts: x, y, anchor and text."""
    words = "".join(
        f'<text x="{x:g}" y="{y:g}" text-anchor="{a}">{z}</text>' for x, y, a, z in texts
    )
    start = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 390 240" role="img"'
    return (
        f'{start} aria-label="{label}" font-family="sans-serif" font-size="12">{words}{paths}</svg>'
    )


def path(points: list[tuple[float, float]], colour: str, more: str = "") -> str:
    """Return a line of a picture."""
    d = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="2"{more}/>'


def travel_picture(part: dict[str, Any]) -> str:
    """Return the first figure without scripts: block 0 of the toy model, at the smallest noise."""
    count = len(part["size"])
    found = decoded(part["eta"][0][1])
    pairs = found[: 2 * (count - 1)].reshape(-1, 2)
    lines = {
        "state": np.array(part["size"]) / part["size"][0],
        "error": np.append(1.0, pairs[:, 0]),
        "drift": np.append(1.0, pairs[:, 1]),
        "passed on": np.append(1.0, decoded(part["pass"])[: count - 1]),
    }
    texts, paths = [(150.0, 236.0, "middle", "after block")], ""
    texts += [(20 + 36 * i, 218, "middle", str(i)) for i in range(count)]
    looks = (GREY, ""), (RED, ""), (BLUE, ""), (BLUE, ' stroke-dasharray="4 4"')
    for (name, values), (colour, more) in zip(lines.items(), looks, strict=True):
        points = [(20 + 36 * i, 108 - 62 * float(np.log(x))) for i, x in enumerate(values)]
        paths += path(points, colour, more)
        texts.append((278, points[-1][1] + 4, "start", f"{name} × {values[-1]:.2f}"))
    label = "Lines: after block 7, " + ", ".join(f"{x} {y[-1]:.2f}" for x, y in lines.items())
    return picture(label + " of what it was after block 0", texts, paths)


def price_picture(part: dict[str, Any]) -> str:
    """Return the second figure without scripts: the toy model, with its budget met."""
    harm, kappa, s = np.array(part["harm"]), part["kappa"], part["s"]
    price = float(np.log(harm).mean())  # blocks of one size: the mean sparsity is s
    stops = s + (price - np.log(harm)) / kappa
    texts, paths = [(195.0, 236.0, "middle", "sparsity of the block")], ""
    texts += [(40 + 320 * x, 218, "middle", f"{100 * x:.0f} %") for x in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    for i, (delta, stop) in enumerate(zip(harm, stops, strict=True)):
        ends = [(x, np.log(delta) + kappa * (x - s)) for x in (0.15, 0.75)]
        colour = RED if i == stops.argmin() else BLUE if i == stops.argmax() else GREY
        paths += path([(40 + 320 * x, 70 - 21 * float(y)) for x, y in ends], colour)
        paths += (
            f'<circle cx="{40 + 320 * stop:.0f}" cy="{70 - 21 * price:.0f}" r="4" fill="{colour}"/>'
        )
    y = 70 - 21 * price
    paths += path([(40, y), (360, y)], "currentColor", ' stroke-dasharray="4 4"')
    for i, anchor, dx in ((stops.argmin(), "end", -8), (stops.argmax(), "start", 8)):
        text = f"block {i}: {100 * stops[i]:.0f} %"
        texts.append((40 + 320 * stops[i] + dx, y - 8, anchor, text))
    texts.append((40, 14, "start", "harm, on a log scale; dashed: one price"))
    return picture(
        "Lines: the harm of each block against its sparsity, and one price", texts, paths
    )


def decoded(text: str) -> Array:
    """Return the numbers that `coded` wrote."""
    index = np.array([ALPHABET.index(x) for x in text]).reshape(-1, 2)
    steps = index[:, 0] * len(ALPHABET) + index[:, 1]
    return np.exp(steps / (len(ALPHABET) ** 2 - 1) * 2 * RANGE - RANGE)


def main(folder: str = "") -> None:
    """Write the page, its pictures, and what real models gave."""
    page = HERE / "play.html"
    text = page.read_text("utf-8")
    if folder:
        rows, figures = real(Path(folder))
        lines = ",\n ".join(json.dumps(row) for row in rows)
        (RESULTS / "claim.json").write_text(f"[{lines}]\n", "utf-8")
    else:
        figures = numbers(text)["travel"][1:]
    known = {
        "alphabet": ALPHABET,
        "range": RANGE,
        "travel": [toy_travel(), *figures],
        "price": [*toy_prices(), smollm2_price()],
    }
    pictures = {
        "travel": travel_picture(known["travel"][0]),
        "price": price_picture(known["price"][0]),
    }
    for name, drawn in pictures.items():
        text = re.sub(
            rf'(id="{name}">).*?(?=</figure>)', lambda x, y=drawn: x[1] + y, text, flags=re.S
        )
        alone = drawn.replace("<svg", f'<svg fill="{GREY}" color="{GREY}"', 1)
        (TUTORIAL / f"{name}.svg").write_text(alone + "\n", "utf-8")
    written = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
    text = re.sub(r'(id="numbers">).*?(?=</script>)', lambda x: x[1] + written, text, flags=re.S)
    page.write_text(text, "utf-8")


def numbers(page: str) -> dict[str, Any]:
    """Return the numbers of the page."""
    found = re.findall(r'id="numbers">(.*?)</script>', page, re.S)
    return json.loads(found[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
