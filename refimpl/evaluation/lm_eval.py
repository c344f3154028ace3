"""An adapter with which lm-evaluation-harness runs its own tasks on a model that refimpl reads.

From Python, call `lm_eval.simple_evaluate(model=RefimplLM("FOLDER"), tasks=[...])`. The harness's
command line knows only models that are registered when it starts, so start it from this module:

    python -m refimpl.evaluation.lm_eval --model refimpl --model_args pretrained=FOLDER --tasks ...
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import numpy as np

from refimpl.arguments import require
from refimpl.errors import RefimplError, listed, need
from refimpl.evaluation.encoding import encoder
from refimpl.evaluation.likelihood import Likelihood, log_likelihoods
from refimpl.loading.checkpoint import read_model
from refimpl.running.held_model import HeldModel
from refimpl.running.settings import parse_memory
from refimpl.running.threads import Workers

try:
    need("eval", "lm_eval")
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except RefimplError as missing:
    if __name__ != "__main__":
        raise
    print(f"error: {missing}", file=sys.stderr)
    sys.exit(2)

TokenPair = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts (or none), ids of the context, ids of the continuation."""


@register_model("refimpl")
class RefimplLM(TemplateLM):  # type: ignore[misc]
    """A model for lm-evaluation-harness: log likelihoods, no generation.

    `memory` such as "1G" is half for residual states, half for weights that are kept between
    requests. `batch_size`, `max_batch_size` and `device`, which the harness passes, are ignored.
    Differs: in the harness's `hf` model, sums over the vocabulary and of log probabilities are not
    float64, and the rule for BOS before a text is not that of `text_tokens`.
    """

    def __init__(
        self,
        pretrained: str,
        config: str | None = None,
        dtype: str = "float32",
        threads: int | str | None = None,
        memory: str | int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        require(dtype, Literal["float32", "float64"], "dtype")
        self._dtype, self._memory = np.dtype(dtype), parse_memory(memory) // 2
        opened = read_model(pretrained, config, download=download)
        self._model = HeldModel.of(opened, self._memory)
        self._encoder = encoder(self._model)
        self._threads = None if threads is None else int(threads)

    @property
    def prefix_token_id(self) -> int:
        """The id in place of an empty context: BOS, or else EOS."""
        return self._encoder.start

    eot_token_id = prefix_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with BOS by the tokenizer's rule unless the flag says otherwise."""
        return self._encoder.ids(string, add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenPair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Summed log probability of every continuation, and whether it is greedy."""
        fitted = [self._encoder.fitted(context, scored) for _, context, scored in requests]
        with Workers(self._threads) as workers:
            likelihoods: list[Likelihood] = log_likelihoods(
                self._model,
                [ids for ids, _ in fitted],
                [start for _, start in fitted],
                workers,
                self._memory,
                self._dtype,
            )
        return [(float(x.log_probabilities.sum()), x.greedy) for x in likelihoods]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Summed log probability of every whole text, in windows that are scored once each."""
        windows: list[TokenPair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self._encoder.longest, 1
            ):
                context, scored = make_disjoint_window(pair)
                windows.append((None, context, scored))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse to generate text."""
        names = sorted({str(getattr(request, "task_name", None)) for request in requests})
        raise RefimplError(
            f"generate_until is not supported; asked for by {listed(names)}",
            "tasks of log likelihoods: multiple_choice, loglikelihood, loglikelihood_rolling",
            "choose other tasks; this model does not generate text",
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
