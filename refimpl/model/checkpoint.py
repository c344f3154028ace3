"""A model on disk: which file holds it, every tensor claimed, one block read at a time."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.claims import claim
from refimpl.model.config import Config
from refimpl.model.files import open_files, read_object
from refimpl.model.hub import read_config
from refimpl.model.ops import Array
from refimpl.model.tensors import SafetensorsFile
from refimpl.model.weights import Weight


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
    files: tuple[SafetensorsFile, ...]
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


def read_model(path: str | Path, config: str | Path | None = None) -> Model:
    """Open a model: a safetensors file, a sharded index, or a folder that holds either.

    Args:
        path: The file or folder.
        config: `config.json`; if not given it is looked for beside the file, then in the file's
            metadata under the key `config.json`.

    Returns:
        The model; no weight has been read yet.

    Raises:
        RefimplError: Anything that would make a number wrong: tensors missing, unclaimed or
            misshapen (all of them at once), config keys not understood, formats not supported.

    Example:
        >>> model = read_model("fixtures/llama")
        >>> model.config.num_blocks, model.config.family
        (4, 'llama')
    """
    path = Path(path)
    files = open_files(path)
    source = Path(config) if config is not None else None
    given, where, config_path = _config_file(path, source, files)
    hub = read_config(given, where)
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return Model(path, hub.config, given, claim(stored, hub, path), files, config_path)


def _config_file(
    path: Path, config: Path | None, files: tuple[SafetensorsFile, ...]
) -> tuple[Mapping[str, Any], str, Path | None]:
    """The parsed `config.json`, by option, beside the file or in its metadata; and where it was."""
    source = config or (path if path.is_dir() else path.parent) / "config.json"
    found: Path | None = source
    text: str | bytes | None
    try:
        text, where = source.read_bytes(), str(source)
    except FileNotFoundError as error:
        texts = [f.metadata["config.json"] for f in files if "config.json" in f.metadata]
        if config is not None or not texts:
            missing = f"{config}: no such file" if config else f"{path}: no config.json beside it"
            raise RefimplError(
                missing if config else f"{missing}, and none in its metadata",
                "head counts, rope theta and the norms' eps, which shapes do not tell",
                "put config.json beside the file, or name it with --config",
            ) from error
        text, where, found = texts[0], f"config.json in the metadata of {path}", None
    except OSError as error:
        raise RefimplError(
            f"{source}: cannot be read ({error.strerror})",
            "the model's config.json",
            "check the path and its permissions",
        ) from error
    return read_object(text, where, "the model's config.json"), where, found
