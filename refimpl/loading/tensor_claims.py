"""Every tensor of a file claimed by a role, every role with a tensor of the right shape."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.config_json import HubModel
from refimpl.loading.safetensors_file import DTYPES, Stored
from refimpl.model.config import LINEARS, NORMS
from refimpl.model.layout import WHOLE, Layout
from refimpl.model.weight import CHUNK, Weight

QUANTISED = re.compile(
    r"qweight|qzeros|g_idx|W_q|scales?$|_scale_inv$|absmax|quant_map|quant_state|\bSCB$"
)
MULTIMODAL = re.compile(r"vision|visual|image|audio|multi_modal|mm_projector|language_model\.")
ADAPTER = re.compile(r"\blora_|\badapter")


@dataclass(frozen=True)
class Role:
    """What one of our tensors must look like in the file.

    Args:
        tensor: The file's name for it.
        shape: The stored shape.
        layout: How the role lies in it.
        offset: Added on reading.
    """

    tensor: str
    shape: tuple[int, ...]
    layout: Layout = WHOLE
    offset: float = 0.0


def roles(hub: HubModel, base: str) -> Iterator[tuple[str, Role]]:
    """Every tensor a model of this configuration has: our name and its `Role`.

    Args:
        hub: What `config.json` says.
        base: Prefix of the file's tensors.

    Yields:
        Our name, such as `blocks.0.q_proj.weight`, and what must be in the file for it.

    Source:
        transformers' `save_pretrained` (a peer): what is on disk is the contract.

    Example:
        >>> from refimpl.loading.config_json import read_config
        >>> sizes = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> found = dict(roles(read_config({"model_type": "gpt2"} | sizes), "transformer."))
        >>> found["blocks.0.k_proj.weight"].tensor, found["blocks.0.k_proj.weight"].shape
        ('transformer.h.0.attn.c_attn.weight', (8, 24))
    """
    config, family = hub.config, hub.family
    width, rows = config.hidden_size, config.max_position_embeddings + config.position_offset
    suffixes = ("weight", "bias") if family.norm == "layer" else ("weight",)

    def norm(role: str, name: str, size: int) -> Iterator[tuple[str, Role]]:
        for suffix in suffixes:
            yield f"{role}.{suffix}", Role(f"{name}.{suffix}", (size,), offset=family.norm_offset)

    embed = f"{base}{family.names['embed'].name}.weight"
    yield "embed.weight", Role(embed, (config.vocab_size, width))
    if "pos_embed" in family.names:
        table = f"{base}{family.names['pos_embed'].name}.weight"
        yield "pos_embed.weight", Role(table, (rows, width))
    for i in range(config.num_blocks):
        for role, part in family.names.items():
            ours, theirs = f"blocks.{i}.{role}", base + part.name.format(i)
            if role in NORMS:
                yield from norm(
                    ours, theirs, config.head_dim if role in ("q_norm", "k_norm") else width
                )
            elif role in LINEARS:
                yield from _linear(hub, role, ours, theirs)
    yield from norm("final_norm", base + family.names["final_norm"].name, width)
    head = embed if hub.tied else f"{family.names['lm_head'].name}.weight"
    yield "lm_head.weight", Role(head, (config.vocab_size, width))


def _linear(hub: HubModel, role: str, ours: str, theirs: str) -> Iterator[tuple[str, Role]]:
    """Weight of one linear, and its bias where the model has it."""
    part, shapes = hub.family.names[role], hub.config.linear_shapes
    together = part.fused or (role,)
    rows = tuple(shapes[other][0] for other in together)
    run = hub.config.head_dim if part.per_head else 0
    shape = (sum(rows), shapes[role][1])
    layout = Layout(rows, together.index(role), run, part.transposed)
    stored_shape = shape[::-1] if part.transposed else shape
    yield f"{ours}.weight", Role(f"{theirs}.weight", stored_shape, layout)
    if role in hub.biased:
        layout = Layout(rows, together.index(role), run)
        yield f"{ours}.bias", Role(f"{theirs}.bias", shape[:1], layout)


def claim(stored: Mapping[str, Stored], hub: HubModel, path: Path) -> dict[str, Weight]:
    """Match the file's tensors with the roles of the model.

    Args:
        stored: The file's tensors by their names.
        hub: What `config.json` says.
        path: The model, for the message.

    Returns:
        Our names to weights, in the order of `roles`.

    Raises:
        RefimplError: Quantised or multimodal files and adapters by name; otherwise a list of every
            tensor that is missing, misshapen, of an unknown dtype, or claimed by no role.

    Differs:
        From transformers, which draws missing tensors at random and skips those it does not know.

    Example:
        >>> from refimpl.loading.config_json import read_config
        >>> sizes = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> claim({}, read_config({"model_type": "gpt2"} | sizes), Path("x.safetensors"))
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: x.safetensors: 5 problems between its tensors and config.json:
          transformer.wte.weight: missing (wanted for embed.weight, shape [9, 8])
        ...
    """
    embed = f"{hub.family.names['embed'].name}.weight"
    base = next((b for b in hub.family.bases if b + embed in stored), hub.family.bases[0])
    wanted = dict(roles(hub, base))
    buffers = re.compile("|".join(re.escape(base) + b for b in hub.family.buffers) or "(?!)")
    head = f"{hub.family.names['lm_head'].name}.weight"
    claimed = {role.tensor for role in wanted.values()}
    unclaimed = [n for n in stored if n not in claimed and not buffers.fullmatch(n)]
    _refuse_formats(stored, unclaimed, path)

    problems = _unfit(stored, wanted)
    for name in unclaimed:
        if name == head and _same_bytes(stored[name], stored.get(base + embed)):
            continue
        problems.append(f"{name}: no role claims it (shape {list(stored[name].shape)})")
    if problems:
        raise RefimplError(
            f"{path}: {len(problems)} problems between its tensors and config.json:\n  "
            + "\n  ".join(problems),
            f"the tensors of a {hub.family.model_type} model of {hub.config.num_blocks} blocks",
            "check that config.json belongs to this file; a new kind of tensor needs a new family",
        )
    return {n: Weight(stored[r.tensor], r.layout, r.offset) for n, r in wanted.items()}


def _unfit(stored: Mapping[str, Stored], wanted: Mapping[str, Role]) -> list[str]:
    """Tensors that are missing, misshapen or of an unknown dtype; whole blocks in one line."""
    block_of = {name: name.split(".")[1] for name in wanted if name.startswith("blocks.")}
    present = {block_of[n] for n in block_of if wanted[n].tensor in stored}
    problems: dict[str, str] = {}  # by tensor, since fused roles share one
    for name, role in wanted.items():
        tensor, block, found = role.tensor, block_of.get(name), stored.get(role.tensor)
        if found is None and block is not None and block not in present:
            problems[f"blocks.{block}"] = f"block {block}: all its tensors are missing"
        elif found is None:
            wants = f"missing (wanted for {name}, shape {list(role.shape)})"
            problems.setdefault(tensor, f"{tensor}: {wants}")
        elif found.shape != role.shape:
            shapes = f"expected shape {list(role.shape)}, got {list(found.shape)}"
            problems[tensor] = f"{tensor}: {shapes}"
        elif found.dtype not in DTYPES:
            problems[tensor] = f"{tensor}: expected {', '.join(DTYPES)}, got {found.dtype}"
    return list(problems.values())


def _same_bytes(head: Stored, embed: Stored | None) -> bool:
    """Whether a stored head is a copy of the embedding it is tied to."""
    if embed is None or (head.dtype, head.shape) != (embed.dtype, embed.shape):
        return False
    one, other = (tensor.array.reshape(-1).view(np.uint8) for tensor in (head, embed))
    for start in range(0, len(one), CHUNK):
        part = slice(start, start + CHUNK)
        if not np.array_equal(one[part], other[part]):
            return False
        head.file.release()
        embed.file.release()
    return True


def _refuse_formats(stored: Mapping[str, Stored], unclaimed: list[str], path: Path) -> None:
    """Refuse by name what no list of tensors would explain."""
    low = [name for name in unclaimed if QUANTISED.search(name)] + [
        name
        for name, tensor in stored.items()
        if name.endswith(".weight") and re.match(r"F[468]_|[IU]\d+$", tensor.dtype)
    ]
    if low:
        raise RefimplError(
            f"{path}: a quantised checkpoint ({len(low)} tensors such as {low[0]})",
            f"weights in {', '.join(DTYPES)}",
            "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
            "original checkpoint",
        )
    if other := [n for n in unclaimed if MULTIMODAL.search(n)]:
        raise RefimplError(
            f"{path}: a multimodal checkpoint ({len(other)} tensors such as {other[0]})",
            "a text-only decoder",
            "save its language model alone (transformers: "
            "model.language_model.save_pretrained(DIR))",
        )
    if adapted := [n for n in unclaimed if ADAPTER.search(n)]:
        raise RefimplError(
            f"{path}: an adapter, not a model ({len(adapted)} tensors such as {adapted[0]})",
            "the weights of a whole model",
            "merge it into its base model (peft: merge_and_unload().save_pretrained(DIR))",
        )
