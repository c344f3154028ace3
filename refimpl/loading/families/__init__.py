"""The families that refimpl reads, one file per lineage."""

from refimpl.loading.families import gemma, gpt2, gpt_neox, granite, llama, olmo, opt, phi3, ungated
from refimpl.loading.families.family import REQUIRED, Family, Location

__all__ = ["FAMILIES", "REQUIRED", "Family", "Location"]

LINEAGES = (llama, gemma, phi3, granite, olmo, ungated, gpt_neox, gpt2, opt)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family)
}
