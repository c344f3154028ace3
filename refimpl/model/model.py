"""A model on disk under our names, read one block at a time."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.ops import Array, bits_of
from refimpl.model.weight import StoredTensor, Weight, WeightFile

EMBEDDING = ("embed", "pos_embed", "embed_norm")  # roles of weights
HEAD = ("final_norm", "lm_head")
TABLES = ("embed.weight", "pos_embed.weight")
EXPERTS_IN_MEMORY = (
    1 << 26
)  # bytes of a block's experts that `Model.block` returns as arrays
Later = Callable[[], Array]
M = TypeVar("M", bound="Model")


class BlockWeights(Mapping[str, Array]):
    """Weights of a block by their names; some are functions that read theirs at each use."""

    def __init__(self, values: Mapping[str, Array | Later]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Array:
        value = self._values[name]
        return value() if callable(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __or__(self, new: Mapping[str, Array | Later]) -> "BlockWeights":
        """The same weights, except for those that are new."""
        return BlockWeights(self._values | dict(new))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in memory."""
        return sum(
            value.nbytes for value in self._values.values() if not callable(value)
        )


def zeroed(weight: Array, keep: Array) -> Array:
    """A weight, of the same kind of array, with zeros where `keep` is False.

    Example:
        >>> zeroed(np.array([1.0, -2.0]), np.array([False, True])).tolist()
        [0.0, -2.0]
    """
    kept = bits_of(weight) * keep  # twenty times as fast as np.where
    return kept.view(weight.dtype).view(type(weight))


@dataclass(frozen=True)
class Model:
    """A model whose weights stay on disk until they are used.

    Args:
        path: Where its files are: the path passed to `read_model`, or the snapshot of an id.
        config: The model's facts.
        config_file: The parsed `config.json`.
        weights: Every tensor under our name (`embed.weight`, `blocks.0.q_proj.weight`, ...).
        files: The files of its weights, open.
        config_path: The file that holds `config.json`; None if the metadata of the weights does.
        hub_id: `org/name@commit` of a model in the Hugging Face cache; else None.
        ignored: Tensors of other parts of a composite checkpoint than its text model.
    """

    path: Path
    config: Config
    config_file: Mapping[str, Any]
    weights: Mapping[str, Weight]
    files: tuple[WeightFile, ...]
    config_path: Path | None = None
    hub_id: str | None = None
    ignored: tuple[StoredTensor, ...] = ()

    def __repr__(self) -> str:
        config = self.config
        sizes = (
            f"{config.num_blocks} blocks, D {config.hidden_size}, V {config.vocab_size}"
        )
        return f"{type(self).__name__}({self.name!r}, {config.family}: {sizes})"

    def as_kind(self, subclass: type[M], /, **more: Any) -> M:
        """The same model as one of a subclass, with the values of its further fields."""
        facts = {field.name: getattr(self, field.name) for field in fields(Model)}
        return subclass(**facts, **more)

    @property
    def name(self) -> str:
        """A name for people: its id with the commit, or else the folder's or the file's name."""
        if self.hub_id is not None:
            return self.hub_id
        full = Path(os.path.abspath(self.path))  # a link keeps its own name
        if full.name.startswith("model.safetensors"):
            return full.parent.name
        return full.name.removesuffix(".safetensors")

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def tokenizer_json(self) -> Path:
        """The tokenizer."""
        return self.folder / "tokenizer.json"

    def embedding(self) -> dict[str, Array]:
        """The tables `embed.weight` [V, D] and any `pos_embed.weight` [P, D], and what they need.

        They are as stored, and `check_finite` checks them; rows are read when `np.take` looks them
        up.
        """
        found = {name: self.weights[name] for name in self.names_of(EMBEDDING)}
        return {
            n: x.stored.table if n in TABLES else x.as_stored for n, x in found.items()
        }

    def names_of(self, roles: tuple[str, ...]) -> list[str]:
        """Names of the weights that have one of some roles, which are no block's."""
        return [name for name in self.weights if name.split(".")[0] in roles]

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Callable[..., Iterable[Any]] = map
    ) -> BlockWeights:
        """Read the weights of one block.

        Experts beyond the first `EXPERTS_IN_MEMORY` bytes (in `dtype`) are checked, and read when
        used. A block with an embedding of its own has the tables `embed.weight` [V, D] and
        `block_embed.weight` [V, P], which are as of `embedding`.

        Args:
            index: The block, from 0.
            dtype: Dtype of the computation.
            each: A function like `map`; that of `Workers` reads tensors in parallel.

        Returns:
            Weights by our names without the block's prefix: `q_proj.weight` [out, in], ...

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        prefix = f"blocks.{index}."
        weights = {
            n[len(prefix) :]: w for n, w in self.weights.items() if n.startswith(prefix)
        }
        size, later = 0, dict[str, Later]()
        for name, weight in weights.items():
            if name.startswith("experts."):
                size += prod(weight.shape) * np.dtype(dtype).itemsize
                if size > EXPERTS_IN_MEMORY:
                    later[name] = partial(weight.read, dtype, checked=False)
        now = [name for name in weights if name not in later]
        arrays = zip(
            now, each(lambda name: weights[name].read(dtype), now), strict=True
        )
        values: dict[str, Array | Later] = dict(arrays)
        for _ in each(lambda name: weights[name].check(dtype), later):
            pass
        if size := self.config.blocks[index].embed_size:
            tables = {
                "embed": slice(None),
                "block_embed": slice(index * size, (index + 1) * size),
            }
            for name, columns in tables.items():
                stored = self.weights[f"{name}.weight"].stored
                later[f"{name}.weight"] = partial(stored.columns, columns)
        return BlockWeights(values | later)

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """Read the weights of `HEAD`; of `lm_head.weight` [V, D] and any `lm_head.bias` some rows.

        Args:
            dtype: Dtype of the computation.
            rows: Which rows, all V by default.

        Raises:
            RefimplError: NaN or Inf in a weight.
        """
        return {
            name: self.weights[name].read(
                dtype, rows if "lm_head" in name else slice(None)
            )
            for name in self.names_of(HEAD)
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
