"""The families that refimpl reads, one file per lineage."""

from refimpl.loading.families.family import REQUIRED, Family, Location
from refimpl.loading.families.gemma import GEMMA2, GEMMA3
from refimpl.loading.families.gpt2 import GPT2
from refimpl.loading.families.gpt_neox import GPT_NEOX
from refimpl.loading.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from refimpl.loading.families.opt import OPT
from refimpl.loading.families.phi3 import PHI3

__all__ = ["FAMILIES", "REQUIRED", "Family", "Location"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT_NEOX, GPT2, OPT)
}
