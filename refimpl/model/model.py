"""A model on disk, under our names: one block read at a time."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.model.weight import TensorFile, Weight


@dataclass(frozen=True)
class Model:
    """A model whose weights stay on disk until asked for.

    Args:
        path: What was given to `read_model`.
        config: Its facts.
        config_file: The parsed `config.json`.
        weights: Every tensor under our name (`embed.weight`, `blocks.0.q_proj.weight`, ...).
        files: The mapped files.
        config_path: The file that `config.json` was read from; None if from the metadata.
    """

    path: Path
    config: Config
    config_file: Mapping[str, Any]
    weights: Mapping[str, Weight]
    files: tuple[TensorFile, ...]
    config_path: Path | None = None

    @property
    def name(self) -> str:
        """A short name for people: the folder's, or the file's."""
        full = Path(os.path.abspath(self.path))  # links keep the name that people gave them
        generic = full.name.startswith("model.safetensors")
        return full.parent.name if generic else full.name.removesuffix(".safetensors")

    @property
    def folder(self) -> Path:
        """Where companions of the weights (tokenizer) are looked for."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """Dtypes in the file, such as ("BF16",), in order of first use."""
        return tuple(dict.fromkeys(weight.stored.dtype for weight in self.weights.values()))

    def embedding(self) -> dict[str, Array]:
        """Tables that tokens and learned positions are looked up in, as stored.

        Returns:
            `embed.weight` [V, D] and any `pos_embed.weight` [P, D]: views of the file, of its
            dtype, nothing read yet; see `check_finite`.
        """
        names = ("embed.weight", "pos_embed.weight")
        return {n: self.weights[n].stored.array for n in names if n in self.weights}

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Callable[..., Iterable[Array]] = map
    ) -> dict[str, Array]:
        """Weights of one block; pages of the file are given back, and read again for views of it.

        Args:
            index: The block, from 0.
            dtype: Dtype of the computation.
            each: As `map`; that of `Workers` reads tensors side by side.

        Returns:
            Weights by our names without the block's prefix: `q_proj.weight` [out, in], ...

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        prefix = f"blocks.{index}."
        names = [name for name in self.weights if name.startswith(prefix)]
        read = each(lambda name: self.weights[name].read(dtype), names)
        found = {name.removeprefix(prefix): x for name, x in zip(names, read, strict=True)}
        self._release()
        return found

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """What turns the last residual stream into logits; pages read before are given back.

        Args:
            dtype: Dtype of the computation.
            rows: Which rows of `lm_head.weight`, all V by default.

        Returns:
            `final_norm.*` [D] and those rows of `lm_head.weight` [rows, D].

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        self._release()
        read = {
            name: self.weights[name].read(dtype)
            for name in ("final_norm.weight", "final_norm.bias")
            if name in self.weights
        }
        return read | {"lm_head.weight": self.weights["lm_head.weight"].read(dtype, rows)}

    def check_finite(self, dtype: npt.DTypeLike | None = None) -> None:
        """Look through the tensors outside the blocks (blocks are checked as they are read).

        Args:
            dtype: Dtype of the computation, whose range the weights must keep; as stored if None.

        Raises:
            RefimplError: NaN or Inf, with the tensor's name and the count.
        """
        outside = {
            weight.stored.name: weight
            for name, weight in self.weights.items()
            if not name.startswith("blocks.")
        }
        for weight in outside.values():
            weight.check(dtype or weight.stored.array.dtype)

    def _release(self) -> None:
        for file in self.files:
            file.release()
