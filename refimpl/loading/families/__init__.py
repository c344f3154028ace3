"""The families that refimpl reads, one file per lineage."""

from refimpl.loading.families import (
    cohere,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mixtures,
    olmo,
    opt,
    phi,
    ungated,
)  # fmt: skip
from refimpl.loading.families.family import REQUIRED, Family, Location

__all__ = ["FAMILIES", "REQUIRED", "Family", "Location"]

LINEAGES = (
    llama, gemma, phi, granite, olmo, glm, cohere, falcon, ungated, gpt_neox, gpt2, opt, mixtures,
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family)
}
