"""From a path to a `Model`: which file holds it, its `config.json`, every tensor claimed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.config_json import read_config
from refimpl.loading.safetensors_file import SafetensorsFile
from refimpl.loading.tensor_claims import claim
from refimpl.loading.weight_files import open_files, read_object
from refimpl.model.model import Model


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
