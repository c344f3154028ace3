"""The two ends of the forward pass: from ids into the stream, and from it to the next token."""

from collections.abc import Iterator

import numpy as np

from refimpl.explanation.block import cap_function, length, norms
from refimpl.explanation.shown_values import Values
from refimpl.explanation.step import Figure, Step
from refimpl.model import forward, ops
from refimpl.model.config import Config
from refimpl.model.token_ids import checked_ids

TOP = 5  # candidates for the next token


def steps_before(config: Config, position_table: bool) -> list[Step]:
    """Tokens, and their way into the residual stream."""
    scale = f"{config.embed_scale:.6g} * " if config.embed_scale != 1 else ""
    row = f" + P[{config.position_offset} + position]" if position_table else ""
    return [
        Step(
            "tokens",
            "a text becomes numbers",
            "A model reads ids, and nothing else of a text.",
            "t_1 .. t_S, each from 0 to V - 1",
            (checked_ids,),
            _tokens,
        ),
        Step(
            "embed",
            "ids become vectors",
            "Every id has a row in a table; these rows start the residual stream, which all blocks "
            "read and add to." + (" Positions have a table, too." if row else ""),
            f"h_0 = {scale}E[id]{row}",
            (forward.embed,),
            _embed,
        ),
    ]


def head_step(config: Config) -> Step:
    """From the last state to the next token."""
    cap = config.final_soft_cap
    z = "W norm(h_L)" if config.logit_scale == 1 else f"{config.logit_scale:.6g} W norm(h_L)"
    return Step(
        "head",
        "the next token",
        "After the last block each token's vector is compared with every id's row: a score per id.",
        f"logits = {z if cap is None else f'{cap:g} tanh({z} / {cap:g})'}      p = softmax(logits)",
        (forward.head, *norms(config), *cap_function(cap), ops.softmax),
        _head,
    )


def _tokens(v: Values) -> Iterator[Figure]:
    yield Figure("ids", v.ids, "[sequences, tokens]")
    if (strings := v.strings(v.ids)) is not None:
        yield Figure("strings", strings, "of these ids in tokenizer.json")
    yield Figure("source", v.tokens.source)
    yield Figure("V", v.config.vocab_size)


def _embed(v: Values) -> Iterator[Figure]:
    yield Figure("h_0", v.embedded[0], "the first sequence, as below")
    yield Figure("||h_0,t||", length(v.embedded[0]), "per token")


def _head(v: Values) -> Iterator[Figure]:
    p = ops.softmax(v.logits)
    best = np.argsort(-p, kind="stable")[:TOP]
    yield Figure("logits", v.logits, "after the last token")
    yield Figure("likeliest ids", best)
    if (strings := v.strings(best)) is not None:
        yield Figure("strings", strings)
    yield Figure("p", p[best], "their probabilities")
