"""The families that refimpl reads, one file per lineage."""

from refimpl.loading.families import (
    cohere,
    falcon,
    gemma,
    glm,
    gpt_neox,
    granite,
    learned_positions,
    llama,
    mixtures,
    olmo,
    phi,
    ungated,
)  # fmt: skip
from refimpl.loading.families.family import BASE, Family, Location

__all__ = ["FAMILIES", "Family", "Location"]

LINEAGES = (
    llama, gemma, phi, granite, olmo, glm, cohere, falcon, ungated, gpt_neox, learned_positions,
    mixtures,
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family is not BASE
}
