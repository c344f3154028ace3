"""A model on disk: which file holds it, every tensor claimed, one block read at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.claims import Weight, claim
from refimpl.model.config import Config
from refimpl.model.hub import read_config
from refimpl.model.ops import Array
from refimpl.model.tensors import SafetensorsFile, open_files


@dataclass(frozen=True)
class Model:
    """A model whose weights stay on disk until asked for.

    Args:
        path: What was given to `read_model`.
        config: Its facts.
        config_file: The parsed `config.json`.
        weights: Every tensor under our name (`embed.weight`, `blocks.0.q_proj.weight`, ...).
        files: The mapped files.
    """

    path: Path
    config: Config
    config_file: Mapping[str, Any]
    weights: Mapping[str, Weight]
    files: tuple[SafetensorsFile, ...]

    @property
    def name(self) -> str:
        """A short name for people: the folder's, or the file's."""
        resolved = self.path.resolve()
        generic = resolved.name.startswith("model.safetensors")
        return resolved.parent.name if generic else resolved.name.removesuffix(".safetensors")

    @property
    def folder(self) -> Path:
        """Where companions of the weights (tokenizer) are looked for."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """Dtypes in the file, such as ("BF16",), in order of first use."""
        return tuple(dict.fromkeys(weight.stored.dtype for weight in self.weights.values()))

    def embedding(self) -> dict[str, Array]:
        """`embed.weight` [V, D] and any `pos_embed.weight`, as stored: views, nothing read yet."""
        names = ("embed.weight", "pos_embed.weight")
        return {n: self.weights[n].stored.array for n in names if n in self.weights}

    def block(self, index: int, dtype: npt.DTypeLike) -> dict[str, Array]:
        """Weights of one block by our names without the prefix, in the dtype of the computation.

        Pages of blocks read before are given back to the system.
        """
        self._release()
        prefix = f"blocks.{index}."
        return {
            name.removeprefix(prefix): weight.read(dtype)
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """`final_norm.*` and the given rows of `lm_head.weight`, in the dtype of the computation."""
        self._release()
        read = {
            name: self.weights[name].read(dtype)
            for name in ("final_norm.weight", "final_norm.bias")
            if name in self.weights
        }
        stored = self.weights["lm_head.weight"].stored.array
        return read | {"lm_head.weight": stored[rows].astype(dtype, copy=False)}

    def _release(self) -> None:
        for file in self.files:
            file.release()

    def check_finite(self) -> None:
        """Look through the tensors outside the blocks (blocks are checked as they are read).

        Raises:
            RefimplError: NaN or Inf, with the tensor's name and the count.
        """
        for name, weight in self.weights.items():
            if not name.startswith("blocks."):
                weight.read(weight.stored.array.dtype)
                weight.stored.file.release()


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
    given = _config_file(path, Path(config) if config is not None else None, files)
    hub = read_config(given)
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return Model(path, hub.config, given, claim(stored, hub, path), files)


def _config_file(
    path: Path, config: Path | None, files: tuple[SafetensorsFile, ...]
) -> Mapping[str, Any]:
    """The parsed `config.json`, from the option, beside the file, or the file's metadata."""
    folder = path if path.is_dir() else path.parent
    source = config or folder / "config.json"
    try:
        if config is not None or source.exists():
            text, where = source.read_text("utf-8"), str(source)
        else:
            texts = [f.metadata["config.json"] for f in files if "config.json" in f.metadata]
            if not texts:
                raise RefimplError(
                    f"{path}: no config.json beside it, and none in its metadata",
                    "head counts, rope theta and the norms' eps, which shapes do not tell",
                    "put config.json beside the file, or name it with --config",
                )
            text, where = texts[0], f"{files[0].path} (metadata)"
        given = json.loads(text)
    except OSError as error:
        raise RefimplError(
            f"{source}: cannot be read ({error.strerror})",
            "the model's config.json",
            "check the path and its permissions",
        ) from error
    except ValueError as error:
        raise RefimplError(
            f"{where}: not JSON ({error})", "the model's config.json", "download it again"
        ) from error
    if not isinstance(given, dict):
        raise RefimplError(
            f"{where}: not a JSON object", "the model's config.json", "download it again"
        )
    return given
