"""The tensors of a GGUF file as transformers names and arranges them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from refimpl.convert.gguf_config import ROPE_FACTORS, Architecture
from refimpl.convert.gguf_file import GgufTensor
from refimpl.loading.checkpoint import Role, roles
from refimpl.loading.config_json import ConfigFacts
from refimpl.loading.files.safetensors_file import ConvertedTensor
from refimpl.model.config import without_number
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, paste

# llama.cpp's names of our roles, of which gguf's map does not know the names in transformers
_STACKED = {
    f"experts.{x}_proj.weight": f"ffn_{x}_exps.weight" for x in ("gate", "up", "down")
}


def converted_tensors(
    stored: Mapping[str, GgufTensor],
    facts: ConfigFacts,
    architecture: Architecture,
    name: str,
) -> dict[str, ConvertedTensor]:
    """The tensors as `save_pretrained` would write them; those of no role keep their names."""
    number = next(x for x, of in MODEL_ARCH_NAMES.items() if of == name)
    names = get_tensor_name_map(number, facts.config.num_blocks)
    parts_of: dict[str, dict[str, Role]] = defaultdict(dict)
    for ours, role in roles(facts, facts.family.bases[0]):
        parts_of[role.tensor][ours] = role
    tensors, used = dict[str, ConvertedTensor](), {ROPE_FACTORS}
    for tensor, parts in parts_of.items():
        fused = str(names.get_name(tensor, try_suffixes=(".weight", ".bias")))
        theirs = [fused] * len(parts) if fused in stored else [*map(_own_name, parts)]
        if {*theirs} <= stored.keys():
            sources = [stored[x] for x in theirs]
            rotates = without_number(next(iter(parts))).split(".")[-2] in (
                "q_proj",
                "k_proj",
            )
            paired = architecture.paired and rotates
            tensors[tensor] = _converted(facts, parts, sources, fused in stored, paired)
            used |= {*theirs}
    left = (x for x in stored.values() if x.name not in used)
    return tensors | {x.name: _as_stored(x.name, x, x.shape) for x in left}


def _own_name(ours: str) -> str:
    """llama.cpp's name of a tensor by our name."""
    _, number, part = (
        ours.split(".", 2) if ours.startswith("blocks.") else ("", "", ours)
    )
    return f"blk.{number}.{_STACKED.get(without_number(part))}"


def _as_stored(
    name: str, source: GgufTensor, shape: tuple[int, ...]
) -> ConvertedTensor:
    """A tensor as it is in the file."""
    return ConvertedTensor(name, source.dtype, shape, source.kind.name, source.pieces)


def _converted(
    facts: ConfigFacts,
    parts: dict[str, Role],
    sources: list[GgufTensor],
    fused: bool,
    paired: bool,
) -> ConvertedTensor:
    """A tensor of transformers out of those of the file; `fused` if there it is one, too."""
    first, (ours, role) = sources[0], next(iter(parts.items()))
    layout, experts = role.layout, facts.config.experts
    for of, source in zip(parts.values(), sources, strict=True):
        shape = of.layout.weight_shape(of.shape)
        expected = (sum(layout.rows), *shape[1:]) if fused and layout.rows else shape
        if experts and ".experts." in ours:
            expected = experts.num_experts, *expected
        if [x for x in source.shape if x > 1] != [
            x for x in expected if x > 1
        ]:  # it has no others
            return _as_stored(
                role.tensor, source, source.shape
            )  # which `claim` refuses
    moved = paired or role.offset or layout.transposed or layout.groups > 1
    if not moved and prod(first.shape) == prod(role.shape):
        return _as_stored(role.tensor, first, role.shape)
    same = {source.dtype for source in sources} == {first.dtype} and not role.offset
    dtype = first.dtype if same else "F32"

    def pieces() -> Iterable[Array]:
        array = np.empty(role.shape, STORED_DTYPES[dtype])
        for (ours, of), source in zip(parts.items(), sources, strict=True):
            expert = [int(x) for x in ours.split(".")[3:] if x.isdigit()]
            values = source.part(expert[0]) if expert else source.array
            if fused and layout.rows:
                values = np.split(values, np.cumsum(layout.rows)[:-1])[of.layout.index]
            values = values.reshape(of.layout.weight_shape(of.shape))
            if paired:  # llama.cpp rotates channels 2i and 2i + 1 together, transformers i, i + h/2
                halves = values.reshape(
                    -1, facts.config.head_dim // 2, 2, *values.shape[1:]
                )
                values = halves.swapaxes(1, 2).reshape(values.shape)
            paste(
                array,
                values - np.float32(of.offset) if of.offset else values,
                of.layout,
            )
        return [array]

    return ConvertedTensor(role.tensor, dtype, role.shape, first.kind.name, pieces)
