"""The families that refimpl reads, one file per lineage, and those that it refuses by name."""

from refimpl.loading.families import (
    cohere,
    falcon,
    gemma,
    glm,
    gpt_neox,
    granite,
    hybrids,
    learned_positions,
    llama,
    mixtures,
    olmo,
    phi,
    ungated,
)  # fmt: skip
from refimpl.loading.families.family import BASE, Family, Location

__all__ = ["FAMILIES", "REFUSED", "Family", "Location"]

LINEAGES = (
    llama, gemma, phi, granite, olmo, glm, cohere, falcon, ungated, gpt_neox, learned_positions,
    mixtures, hybrids,
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family is not BASE
}

# What some compute that the forward does not, and the way out
REFUSED = {
    name: (reason, way_out)
    for names, reason, way_out in (
        (
            "deepseek_v2 deepseek_v3 deepseek_v32 mistral4 minicpm3 longcat_flash",
            "multi-head latent attention",
            "use a model with plain attention, such as qwen3",
        ),
        (
            "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe lfm2 lfm2_moe nemotron_h falcon_h1 "
            "falcon_mamba jamba bamba zamba2 mamba mamba2 recurrent_gemma "
            "kimi_linear",
            "blocks with a state space, a convolution or linear attention in place of attention",
            "use a model with attention in every block, such as qwen3",
        ),
        (
            "gemma3n gemma3n_text gemma4 gemma4_text",
            "an embedding of its own in every block, and keys and values that blocks share",
            "use the family before it, gemma3_text",
        ),
    )
    for name in names.split()
}
