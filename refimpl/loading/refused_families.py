"""Families that refimpl refuses by name: what they compute that the forward does not."""

from refimpl.errors import RefimplError
from refimpl.loading.families import FAMILIES

_LATENT = "multi-head latent attention", "use a model with plain attention, such as qwen3"
_RECURRENT = (
    "blocks with a state space, a convolution or linear attention in place of attention",
    "use a model with attention in every block, such as qwen3",
)
_PER_BLOCK = (
    "an embedding of its own in every block, and keys and values that blocks share",
    "use the family before it, gemma3_text",
)
# What a family has, and the way out
REFUSED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "mistral4", "minicpm3", "longcat_flash"),
        _LATENT,
    ),
    **dict.fromkeys(
        (
            "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "lfm2", "lfm2_moe",
            "nemotron_h", "falcon_h1", "falcon_mamba", "jamba", "bamba", "zamba2", "mamba",
            "mamba2", "granitemoehybrid", "recurrent_gemma", "kimi_linear",
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _PER_BLOCK),
}  # fmt: skip


def check_family(model_type: object, source: str) -> None:
    """Refuse a family that is known and out of reach, with the reason."""
    if isinstance(model_type, str) and model_type in REFUSED:
        reason, way_out = REFUSED[model_type]
        raise RefimplError(
            f"{source} describes a {model_type} model: it has {reason}, which refimpl does not "
            "compute",
            f"one of {', '.join(FAMILIES)}",
            way_out,
        )
