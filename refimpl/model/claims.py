"""Every tensor of a file claimed by a role, every role with a tensor of the right shape."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import LINEARS, NORMS
from refimpl.model.hub import HubModel
from refimpl.model.ops import Array
from refimpl.model.storage import Layout, cut
from refimpl.model.tensors import DTYPES, Stored

QUANTISED = re.compile(r"qweight|qzeros|g_idx|scales$|_scale$|_scale_inv$|absmax|quant_state")
MULTIMODAL = re.compile(r"vision|visual|image|audio|multi_modal|mm_projector|language_model\.")


@dataclass(frozen=True)
class Weight:
    """One of our tensors.

    Args:
        stored: The file's tensor that holds it.
        layout: How it lies there.
        offset: Added on reading.
    """

    stored: Stored
    layout: Layout = Layout()
    offset: float = 0.0

    def read(self, dtype: npt.DTypeLike) -> Array:
        """The weight in the dtype of the computation; a view where nothing needs to change.

        Raises:
            RefimplError: NaN or Inf in it.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            weight = np.require(cut(self.stored.array, self.layout), dtype, ["A"])
        if bad := weight.size - np.count_nonzero(np.isfinite(weight)):
            raise RefimplError(
                f"{self.stored.file.path}: {self.stored.name} holds {bad} NaN or Inf out of "
                f"{weight.size} (read as {np.dtype(dtype).name})",
                "finite weights",
                "repair or replace the checkpoint; float64 weights beyond float32's range need "
                "--dtype float64",
            )
        return weight + np.array(self.offset, dtype) if self.offset else weight


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
    layout: Layout = Layout()
    offset: float = 0.0


def roles(hub: HubModel, base: str) -> Iterator[tuple[str, Role]]:
    """Every tensor a model of this configuration has: our name and its `Role`.

    Args:
        hub: What `config.json` says.
        base: Prefix of the file's tensors.

    Yields:
        Our name, such as `blocks.0.q_proj.weight`, and what must be in the file for it.
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
        RefimplError: Quantised or multimodal files by name; otherwise a list of every tensor that
            is missing, misshapen, of an unknown dtype, or claimed by no role.
    """
    embed = f"{hub.family.names['embed'].name}.weight"
    base = next((b for b in hub.family.bases if b + embed in stored), hub.family.bases[0])
    wanted = dict(roles(hub, base))
    buffers = re.compile("|".join(re.escape(base) + b for b in hub.family.buffers) or "(?!)")
    untied_copy = f"{hub.family.names['lm_head'].name}.weight"
    claimed = {role.tensor for role in wanted.values()}
    unclaimed = [n for n in stored if n not in claimed and not buffers.fullmatch(n)]
    _refuse_formats(stored, unclaimed, path)

    problems = []
    for name, role in wanted.items():
        if role.tensor not in stored:
            problems.append(f"{role.tensor}: missing (wanted for {name}, shape {list(role.shape)})")
        elif (found := stored[role.tensor]).shape != role.shape:
            problems.append(
                f"{role.tensor}: expected shape {list(role.shape)}, got {list(found.shape)}"
            )
        elif found.dtype not in DTYPES:
            problems.append(f"{role.tensor}: expected {', '.join(DTYPES)}, got {found.dtype}")
    for name in unclaimed:
        if name == untied_copy and embed_equal(stored[name], stored.get(base + embed)):
            continue
        problems.append(f"{name}: no role claims it (shape {list(stored[name].shape)})")
    if problems:
        shown = list(dict.fromkeys(problems))
        raise RefimplError(
            f"{path}: {len(shown)} tensors do not fit config.json:\n  " + "\n  ".join(shown),
            f"the tensors of a {hub.family.model_type} model with this config.json",
            "check that config.json belongs to this file; a new kind of tensor needs a new family",
        )
    return {n: Weight(stored[r.tensor], r.layout, r.offset) for n, r in wanted.items()}


def embed_equal(head: Stored, embed: Stored | None) -> bool:
    """Whether a stored head is a byte-for-byte copy of the embedding it is tied to."""
    if embed is None or (head.dtype, head.shape) != (embed.dtype, embed.shape):
        return False
    same = head.array.tobytes() == embed.array.tobytes()
    head.file.release()
    embed.file.release()
    return same


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
            "save its language model alone (transformers: model.language_model.save_pretrained(DIR))",
        )
