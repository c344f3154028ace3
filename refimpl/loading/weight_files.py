"""Which files hold a model's weights: a file, the shards of an index, or what a folder has."""

import json
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.safetensors_file import SafetensorsFile

_WANTED = "a .safetensors file, an index, or a folder that holds one"
_PICKLE = (
    "convert it where you trust it, since pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
_GGUF = (
    "de-quantise it (transformers: from_pretrained(DIR, gguf_file=FILE, quantization_config="
    "GgufConfig(dequantize=True)).save_pretrained(NEW))"
)
_OTHER = "convert it (transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
WAY_OUT = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE) | {".gguf": _GGUF}
WAY_OUT |= dict.fromkeys((".h5", ".msgpack", ".onnx"), _OTHER)


def open_files(path: Path) -> tuple[SafetensorsFile, ...]:
    """Find and open the files that hold a model's weights.

    Args:
        path: A safetensors file, an index (`*.safetensors.index.json`), or a folder. In a folder
            `model.safetensors` goes before an index, and an index before any other single file.

    Returns:
        The files, mapped.

    Raises:
        RefimplError: Nothing there, not readable, another format, an adapter, several candidates,
            or an index that names files outside its folder or does not match its shards.

    Example:
        >>> [file.path.name for file in open_files(Path("fixtures/llama"))]
        ['model.safetensors']
    """
    try:
        found = _file_of(path) if path.is_dir() else path
        if not found.exists():
            raise RefimplError(f"{path}: no such file or folder", _WANTED, "check the path")
        if found.name.endswith(".index.json"):
            return _open_shards(found)
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be read ({error.strerror})", _WANTED, "check its permissions"
        ) from error
    if found.suffix != ".safetensors":
        raise RefimplError(
            f"{path}: {found.suffix or 'this file'} is not safetensors",
            _WANTED,
            WAY_OUT.get(found.suffix, "save the model with save_pretrained(DIR)"),
        )
    if found.name.startswith("adapter_model"):
        raise _adapter(found)
    return (SafetensorsFile(found),)


def read_object(text: str | bytes, where: str, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The JSON.
        where: Where it came from, for the message.
        what: What it should be, for the message.

    Returns:
        The object.

    Raises:
        RefimplError: Not JSON, nested too deeply, or not an object.

    Example:
        >>> read_object('{"a": [1]}', "a.json", "an example")
        {'a': [1]}
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefimplError(f"{where}: not JSON ({error})", what, "download it again") from error
    if not isinstance(value, dict):
        raise RefimplError(f"{where}: not a JSON object", what, "download it again")
    return value


def _file_of(folder: Path) -> Path:
    """The one file of a folder that stands for its model."""
    names = sorted(entry.name for entry in folder.iterdir())
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    tensors = [name for name in names if name.endswith(".safetensors")]
    found = ["model.safetensors"] if "model.safetensors" in tensors else indices or tensors
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise RefimplError(
            f"{folder}: {len(found)} candidates: {', '.join(found)}",
            "model.safetensors, or one index, or one .safetensors file",
            "name the file itself; shards need their index, *.safetensors.index.json",
        )
    if "adapter_config.json" in names:
        raise _adapter(folder)
    others = [name for name in names if Path(name).suffix in WAY_OUT]
    only = f", only {', '.join(others)}" if others else ""
    raise RefimplError(
        f"{folder}: no .safetensors file in it{only}",
        "a folder with .safetensors weights",
        WAY_OUT[Path(others[0]).suffix] if others else "check the path",
    )


def _adapter(path: Path) -> RefimplError:
    """The refusal of an adapter."""
    return RefimplError(
        f"{path}: an adapter, not a model",
        "the weights of a whole model",
        "merge it into its base model (peft: merge_and_unload().save_pretrained(DIR))",
    )


def _weight_map(index: Path) -> dict[str, str]:
    """What an index says: tensor to the name of its shard."""
    what = 'a JSON object with a "weight_map" from tensor to file name'
    where = read_object(index.read_bytes(), str(index), what).get("weight_map")
    if (
        not isinstance(where, dict)
        or not where
        or not all(isinstance(n, str) for n in where.values())
    ):
        raise RefimplError(f"{index}: not an index of shards", what, "download it again")
    return where


def _open_shards(index: Path) -> tuple[SafetensorsFile, ...]:
    """The shards an index names, checked against it."""
    where = _weight_map(index)
    names = list(dict.fromkeys(where.values()))
    # A shard may be a link (hub caches are made of them), but the index can name only neighbours.
    outside = [n for n in names if Path(n).name != n or "\\" in n or n in ("", "..")]
    if outside:
        raise RefimplError(
            f"{index}: names files outside its folder: {', '.join(outside)}",
            "plain file names",
            "do not use this index; get the model from its source",
        )
    if others := [name for name in names if not name.endswith(".safetensors")]:
        raise RefimplError(
            f"{index}: shards that are not safetensors: {', '.join(others)}",
            "shards named *.safetensors",
            WAY_OUT.get(Path(others[0]).suffix, _OTHER),
        )
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise RefimplError(
            f"{index}: shards that are not there: {', '.join(absent)}",
            f"all {len(names)} shards beside the index",
            "download the missing shards",
        )
    files = tuple(SafetensorsFile(index.parent / name) for name in names)
    tensors = {file.path.name: file.tensors for file in files}
    problems = [
        f"{name}: in the index under {shard}, not in that file"
        for name, shard in where.items()
        if name not in tensors[shard]
    ] + [
        f"{name}: in {shard}, in the index under {where.get(name, 'nothing')}"
        for shard, names_in_it in tensors.items()
        for name in names_in_it
        if where.get(name) != shard
    ]
    if problems:
        raise RefimplError(
            f"{index}: does not match its shards:\n  " + "\n  ".join(problems),
            "every tensor in the file the index names, and no other",
            "download the index and its shards again",
        )
    return files
