"""From a path to a `Model`: every tensor is claimed by a role, and every role has a tensor."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError, reading
from refimpl.loading.config_json import (
    OTHER_PARTS,
    TEXT_NAMES,
    ConfigFacts,
    part,
    read_config,
)
from refimpl.loading.families import Location
from refimpl.loading.files.documents import json_object, read_file
from refimpl.loading.files.hub import local_files
from refimpl.loading.files.safetensors_file import (
    SafetensorsFile,
    open_files,
    refuse_convertible,
)
from refimpl.model.config import LEARNED_ACTIVATION, without_number
from refimpl.model.model import Model
from refimpl.model.weight import OWN_TENSOR, STORED_DTYPES, Layout, StoredTensor, Weight

_EXPECTED = "the model's config.json"


def read_model(
    path: str | Path, config: str | Path | None = None, *, download: bool = False
) -> Model:
    """Open a model: a safetensors file, an index of shards, a folder, or an id.

    Args:
        path: The file, or the folder of safetensors. If it does not exist,
            ``org/name[@revision]``: a model in the Hugging Face cache (needs the extra `hub`).
        config: The path of `config.json`; if None, `read_model` looks beside the file, then in the
            file's metadata under the key `config.json`.
        download: Whether to ask the server (`HF_ENDPOINT`) for the files of an id, and download
            those that the cache does not hold.

    Returns:
        The model; no weight has been read yet.

    Raises:
        RefimplError: Anything that would make a number wrong: missing, unclaimed or misshapen
            tensors, unknown config keys (each list is complete), or an unsupported format; an id
            that the cache does not hold whole, or that cannot be downloaded.

    Example:
        >>> model = read_model("fixtures/llama")
        >>> model.config.num_blocks, model.config.family
        (4, 'llama')
    """
    path, hub_id = local_files(path, download)
    refuse_convertible(path)
    files = open_files(path)
    option = None if config is None else Path(config)
    entries, source, config_path = config_file(path, option, files)
    refuse_convertible(path, entries)
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    facts = read_config(entries, source)
    weights, ignored = claim(tensors, facts, path)
    return Model(
        path, facts.config, entries, weights, files, config_path, hub_id, ignored
    )


def config_file(
    path: Path, option: Path | None, files: tuple[SafetensorsFile, ...]
) -> tuple[dict[str, Any], str, Path | None]:
    """The parsed `config.json`, its name for messages, and its path (None in the metadata)."""
    file = option or (path if path.is_dir() else path.parent) / "config.json"
    with reading(file, _EXPECTED):
        if file.exists():
            return json_object(read_file(file), str(file), _EXPECTED), str(file), file
    texts = [x.metadata["config.json"] for x in files if "config.json" in x.metadata]
    if texts and option is None:
        source = f"config.json in the metadata of {path}"
        return json_object(texts[0], source, _EXPECTED), source, None
    raise RefimplError(
        f"{option}: no such file"
        if option
        else f"{path} has no config.json {'in' if path.is_dir() else 'beside'} it or its metadata",
        "config.json with the head counts, rope theta and norm eps, which shapes do not tell",
        "put the model's config.json beside its weights",
    )


@dataclass(frozen=True)
class Role:
    """The file's tensor and its stored shape for one of our tensors; the rest as for `Weight`."""

    tensor: str
    shape: tuple[int, ...]
    layout: Layout = OWN_TENSOR
    offset: float = 0.0


def roles(facts: ConfigFacts, base: str) -> Iterator[tuple[str, Role]]:
    """Our name of every tensor of a model, and its `Role` as `save_pretrained` names it."""
    config, names, gain = facts.config, facts.names, facts.family.norm_offset
    width, rows = (
        config.hidden_size,
        config.max_position_embeddings + config.position_offset,
    )
    suffixes = {"weight": gain, "bias": 0.0}
    if config.norm == "rms" or not facts.family.norm_bias:
        del suffixes["bias"]

    def norm(role: str, name: str, size: int) -> Iterator[tuple[str, Role]]:
        for suffix, offset in suffixes.items():
            yield f"{role}.{suffix}", Role(f"{name}.{suffix}", (size,), offset=offset)

    embed = f"{base}{names['embed'].name}.weight"
    yield "embed.weight", Role(embed, (config.vocab_size, width))
    if own := sum(kind.embed_size for kind in config.blocks):
        table = f"{base}{names['block_embed'].name}.weight"
        yield "block_embed.weight", Role(table, (config.vocab_size, own))
    if "pos_embed" in names:
        table = f"{base}{names['pos_embed'].name}.weight"
        yield "pos_embed.weight", Role(table, (rows, width))
    if "embed_norm" in names:
        yield from norm("embed_norm", base + names["embed_norm"].name, width)
    for i in range(config.num_blocks):
        of_mixer, norms = config.mixer(i).shapes(width), config.norm_sizes(i)
        beside = config.blocks[i].shapes(width)
        shapes = of_mixer.arrays | LEARNED_ACTIVATION | beside.arrays
        for role, location in names.items():
            if (
                facts.family.mixer_of.get(role, config.mixer(i).name)
                != config.mixer(i).name
            ):
                continue
            theirs = base + location.name.format(i, "")
            if role in norms:
                yield from norm(f"blocks.{i}.{role}", theirs, norms[role])
            elif role in shapes:
                yield f"blocks.{i}.{role}", Role(theirs, shapes[role])
        matrices = {**config.linears[i], **of_mixer.matrices, **beside.matrices}
        if size := config.blocks[i].embed_size:
            name, layout = (
                names["block_embed_stream"].name,
                Layout((size,) * config.num_blocks, i),
            )
            stored = Role(f"{base}{name}.weight", (own, width), layout)
            yield f"blocks.{i}.block_embed_stream.weight", stored
        for linear in matrices:
            yield from _linear(facts, i, linear, matrices, base)
        if config.blocks[i].mixture:
            yield from _routing(facts, i, base)
    if "final_norm" in names:
        yield from norm("final_norm", base + names["final_norm"].name, width)
    head = embed if facts.tied else f"{names['lm_head'].name}.weight"
    yield "lm_head.weight", Role(head, (config.vocab_size, width))
    if "lm_head" in facts.biased:
        yield (
            "lm_head.bias",
            Role(f"{names['lm_head'].name}.bias", (config.vocab_size,)),
        )


def _linear(
    facts: ConfigFacts,
    block: int,
    linear: str,
    shapes: Mapping[str, tuple[int, int]],
    base: str,
) -> Iterator[tuple[str, Role]]:
    """Weight of one linear, and its bias if the model has it."""
    role, mixer = without_number(linear), facts.config.mixer(block)
    location, number = (
        facts.names[role],
        int("0" + "".join(filter(str.isdigit, linear))),
    )
    ours, theirs = (
        f"blocks.{block}.{linear}",
        base + location.name.format(block, number),
    )
    together = location.fused or (role,)
    of = "".join(linear.rpartition(".")[:2])  # such as experts.7.
    rows = tuple(shapes[of + other.rpartition(".")[2]][0] for other in together)
    groups = mixer.runs(together) if location.grouped else 1
    groups = rows[0] if location.alternating else groups
    shape = (sum(rows), shapes[linear][1])
    stack = (
        facts.config.experts.num_experts
        if location.stacked and facts.config.experts
        else 0
    )
    layout = Layout(
        rows, together.index(role), groups, location.transposed, stack, number
    )
    stored_shape = shape[::-1] if location.transposed else shape
    stacked = (stack,) if stack else ()
    yield (
        f"{ours}.weight",
        Role(theirs + location.weight, (*stacked, *stored_shape), layout),
    )
    if role in facts.biased:
        layout = replace(layout, transposed=False)
        yield (
            f"{ours}.bias",
            Role(theirs + location.bias, (*stacked, sum(rows)), layout),
        )


def _routing(facts: ConfigFacts, block: int, base: str) -> Iterator[tuple[str, Role]]:
    """The tensors of a router, and the gate of the shared expert."""
    names, experts, width = facts.names, facts.config.experts, facts.config.hidden_size
    assert experts is not None
    count = experts.num_experts
    shapes = {"router": (count, width), "shared_expert.gate": (1, width)}
    for role, shape in shapes.items():
        if role in names and (role == "router" or experts.shared_size):
            name = base + names[role].name.format(block)
            yield f"blocks.{block}.{role}.weight", Role(f"{name}.weight", shape)
            if role in facts.biased:
                yield f"blocks.{block}.{role}.bias", Role(f"{name}.bias", shape[:1])
    sizes = {"correction": count, "scale": width, "expert_scale": count}
    for role, size in ((f"router.{x}", size) for x, size in sizes.items()):
        if location := names.get(role):
            layout = Layout(stack=int(location.stacked))
            name, stored_shape = (
                base + location.name.format(block),
                (1,) * layout.stack + (size,),
            )
            yield f"blocks.{block}.{role}", Role(name, stored_shape, layout)


def claim(
    tensors: Mapping[str, StoredTensor], facts: ConfigFacts, path: Path
) -> tuple[dict[str, Weight], tuple[StoredTensor, ...]]:
    """Match the file's tensors with the roles of the model; the error lists all problems.

    Also returned are the tensors of other parts of a composite checkpoint.
    """
    embed, ignored = f"{facts.names['embed'].name}.weight", tuple[StoredTensor, ...]()
    if facts.composite:
        base, head = next(
            (x for x in TEXT_NAMES if x[0] + embed in tensors), TEXT_NAMES[0]
        )
        family = replace(facts.family, bases=(base,))
        facts = replace(
            facts, family=family, names={**facts.names, "lm_head": Location(head)}
        )
        ignored = tuple(x for name, x in tensors.items() if part(name) in OTHER_PARTS)
        tensors = {
            name: x for name, x in tensors.items() if part(name) not in OTHER_PARTS
        }
    base = next(
        (b for b in facts.family.bases if b + embed in tensors), facts.family.bases[0]
    )
    stacks = facts.family.stacks
    if any(
        base + x.name.format(i) + x.weight in tensors
        for x in stacks.values()
        for i in range(facts.config.num_blocks)
    ):
        both = (
            replace(facts, names={**facts.names, **stacks}),
            facts,
        )  # maybe of the same names
        facts = min(both, key=lambda x: len(_unfit(tensors, dict(roles(x, base)))))
    role_of = dict(roles(facts, base))
    outside = (b.removeprefix("^") for b in facts.family.buffers if b.startswith("^"))
    inside = (
        re.escape(base) + b for b in facts.family.buffers if not b.startswith("^")
    )
    buffers = re.compile("|".join((*inside, *outside)) or "(?!)")
    head = f"{facts.names['lm_head'].name}.weight"
    claimed = {role.tensor for role in role_of.values()}
    unclaimed = [n for n in tensors if n not in claimed and not buffers.fullmatch(n)]

    problems = _unfit(tensors, role_of)
    for name in unclaimed:
        if name == head and _same_bytes(tensors[name], tensors.get(base + embed)):
            continue
        problems.append(
            f"{name}: no role claims it (shape {list(tensors[name].shape)})"
        )
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RefimplError(
            f"{path}: {count} between its tensors and config.json:",
            f"the tensors of a {facts.family.model_type} model of {facts.config.num_blocks} blocks",
            "check that config.json belongs to this file; a new kind of tensor needs a new family",
            problems,
        )
    weights = {
        n: Weight(tensors[r.tensor], r.layout, r.offset) for n, r in role_of.items()
    }
    return weights, ignored


def _unfit(
    tensors: Mapping[str, StoredTensor], role_of: Mapping[str, Role]
) -> list[str]:
    """Tensors that are missing, misshapen or of an unknown dtype; a missing block is one line."""
    block_of = {
        name: name.split(".")[1] for name in role_of if name.startswith("blocks.")
    }
    present = {block_of[n] for n in block_of if role_of[n].tensor in tensors}
    problems: dict[str, str] = {}  # by tensor, because fused roles share one
    for name, role in role_of.items():
        tensor, block, stored = (
            role.tensor,
            block_of.get(name),
            tensors.get(role.tensor),
        )
        if stored is None and block is not None and block not in present:
            problems[f"blocks.{block}"] = f"block {block}: all its tensors are missing"
        elif stored is None:
            role_text = f"needed for {name}, shape {list(role.shape)}"
            problems.setdefault(tensor, f"{tensor}: missing ({role_text})")
        elif stored.shape != role.shape:
            shapes = f"expected shape {list(role.shape)}, got {list(stored.shape)}"
            problems[tensor] = f"{tensor}: {shapes}"
        elif stored.dtype not in STORED_DTYPES:
            problems[tensor] = (
                f"{tensor}: expected {', '.join(STORED_DTYPES)}, got {stored.dtype}"
            )
    return list(problems.values())


def _same_bytes(head: StoredTensor, embed: StoredTensor | None) -> bool:
    """Whether a stored head is a copy of the embedding that it is tied to."""
    if embed is None or (head.dtype, head.shape) != (embed.dtype, embed.shape):
        return False
    pieces = zip(head.pieces(), embed.pieces(), strict=True)
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in pieces)
