"""Score a model on a dask cluster, or here: OUTPUT ADDRESS MODEL SAMPLES LENGTH PLAN."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from refimpl import Noise, Probes, Request, random_tokens, read_model, score
from refimpl.running.file_system import work_path

PLANS = {
    "gaussian": (Noise(), Request(correct="absorption")),
    "pruning": (Probes(), Request("owl", correct="divergence")),
}


def main(output: str, address: str, folder: str, samples: str, length: str, plan: str) -> None:
    model = read_model(folder)
    tokens = random_tokens(model.config.vocab_size, int(samples), int(length))
    options: dict[str, Any] = {"finished": work_path(Path(output))}
    with ExitStack() as ends:
        if address:
            from distributed import Client

            client = ends.enter_context(Client(address))
            options |= {"executor": client.get_executor(pure=False), "threads": 3}
        score(model, tokens, *PLANS[plan], **options).save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
