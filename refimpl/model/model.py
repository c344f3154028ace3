"""A model on disk under our names, read one block at a time."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.model.weight import MappedFile, Weight


@dataclass(frozen=True)
class Model:
    """A model whose weights stay on disk until they are used.

    Args:
        path: Where its files are: the path passed to `read_model`, or the snapshot of an id.
        config: The model's facts.
        config_file: The parsed `config.json`.
        weights: Every tensor under our name (`embed.weight`, `blocks.0.q_proj.weight`, ...).
        files: The mapped files.
        config_path: The file that holds `config.json`; None if the metadata of the weights does.
        hub_id: `org/name@commit` of a model in the Hugging Face cache, else None.
        companions: Finds or makes the files for a folder with the weights as they are after
            reading, `config.json` and the tokenizer among them; None if weights stay as they are.
    """

    path: Path
    config: Config
    config_file: Mapping[str, Any]
    weights: Mapping[str, Weight]
    files: tuple[MappedFile, ...]
    config_path: Path | None = None
    hub_id: str | None = None
    companions: Callable[[], Mapping[str, Path]] | None = None

    @property
    def name(self) -> str:
        """A name for people: its id with the commit, or else the folder's or the file's name."""
        if self.hub_id is not None:
            return self.hub_id
        full = Path(os.path.abspath(self.path))  # a link keeps its own name
        generic = full.name.startswith("model.safetensors")
        return (
            full.parent.name
            if generic
            else full.name.removesuffix(".safetensors").removesuffix(".gguf")
        )

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def tokenizer_json(self) -> Path:
        """The tokenizer."""
        companions = self.companions() if self.companions else {}
        return companions.get("tokenizer.json", self.folder / "tokenizer.json")

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """Dtypes in the file, such as ("BF16",), in order of first use."""
        return tuple(dict.fromkeys(weight.stored.kind for weight in self.weights.values()))

    def embedding(self) -> dict[str, Array]:
        """The tables of tokens and learned positions, as stored; `check_finite` checks them.

        Returns:
            `embed.weight` [V, D], any `pos_embed.weight` [P, D] and any `embed_norm.*` [D]: views
            of the file in its dtype.
        """
        names = ("embed.weight", "pos_embed.weight", "embed_norm.weight", "embed_norm.bias")
        return {n: self.weights[n].stored.table for n in names if n in self.weights}

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Callable[..., Iterable[Array]] = map
    ) -> dict[str, Array]:
        """Read the weights of one block, then free the mapped pages that hold them.

        Args:
            index: The block, from 0.
            dtype: Dtype of the computation.
            each: A function like `map`; that of `Workers` reads tensors in parallel.

        Returns:
            Weights by our names without the block's prefix: `q_proj.weight` [out, in], ...
            Those that are views of the file are read again when they are used.

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        prefix = f"blocks.{index}."
        names = [name for name in self.weights if name.startswith(prefix)]
        arrays = each(lambda name: self.weights[name].read(dtype), names)
        weights = {name.removeprefix(prefix): x for name, x in zip(names, arrays, strict=True)}
        self._release()
        return weights

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """Read the final norm and the head, after freeing the mapped pages read before.

        Args:
            dtype: Dtype of the computation.
            rows: Which rows of `lm_head.weight`, all V by default.

        Returns:
            `final_norm.*` [D] and those rows of `lm_head.weight` [rows, D] and any `lm_head.bias`.

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        self._release()
        parts = {"final_norm": slice(None), "lm_head": rows}
        return {
            name: self.weights[name].read(dtype, parts[role])
            for role in parts
            for name in (f"{role}.weight", f"{role}.bias")
            if name in self.weights
        }

    def check_finite(self, dtype: npt.DTypeLike | None = None) -> None:
        """Check the tensors outside the blocks; `block` checks those it reads.

        Args:
            dtype: Dtype of the computation, which must hold all values; as stored if None.

        Raises:
            RefimplError: NaN or Inf, with the tensor's name and the count.
        """
        outside = {
            weight.stored.name: weight
            for name, weight in self.weights.items()
            if not name.startswith("blocks.")
        }
        for weight in outside.values():
            weight.check(dtype or weight.stored.numpy_dtype)

    def _release(self) -> None:
        for file in self.files:
            file.release()
