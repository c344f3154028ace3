"""The families that refimpl reads, one file per lineage, and those that it refuses by name."""

from refimpl.loading.families import (
    cohere,
    deepseek,
    falcon,
    gemma,
    gpt,
    hybrids,
    llama,
    mixtures,
)  # fmt: skip
from refimpl.loading.families.family import BASE, Family, Location, only, unread

__all__ = ["ALIASES", "FAMILIES", "REFUSED", "Family", "Location"]

LINEAGES = (llama, gemma, cohere, falcon, gpt, mixtures, deepseek, hybrids)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family is not BASE
}

# Types with the formulas of a family, and their own defaults or tensors (mostly of text models)
QWEN2_VL = llama.QWEN2.like("qwen2", keys=dict(
    rope_theta=1000000.0, norm_eps=1e-5, num_key_value_heads=8, max_window_layers=80,
))  # fmt: skip
ALIASES = {
    "kimi_k2": deepseek.DEEPSEEK_V3,
    "gpt-sw3": gpt.GPT2,
    "iquestcoder": llama.LLAMA.like("llama", keys=dict(
        num_key_value_heads=8, head_dim=128, norm_eps=1e-5, max_position_embeddings=131072,
        **unread("clip_qkv", "use_sliding_window", "sliding_window"),
    )),
    "qwen2_vl_text": QWEN2_VL,
    "qwen2_5_vl_text": QWEN2_VL,
    "qwen3_vl_text": llama.QWEN3.like(
        "qwen3", keys=dict(rope_theta=500000.0, max_position_embeddings=128000)
    ),
    "qwen3_vl_moe_text": mixtures.QWEN3_MOE.like(
        "qwen3_moe",
        names=mixtures.stacked("layers.{}.mlp.experts", transposed=True, weight=""),
        keys=dict(
            num_experts=60, num_experts_per_tok=4, norm_topk_prob=only(True), rope_theta=500000.0,
            moe_intermediate_size=1408, num_key_value_heads=16, max_position_embeddings=128000,
        ),
    ),
    "exaone4_5_text": llama.EXAONE4.like("exaone4", buffers=(r"^mtp\..*", *llama.LLAMA.buffers)),
}  # fmt: skip

# What some compute that the forward does not, the nearest family if not qwen3, and their names
_REFUSALS = """
attention to a few earlier tokens, which an index of its own chooses
    deepseek_v32 deepseek_v4 glm_moe_dsa axk2 hy_v4 dots3_note dots3_note_text minimax_m3_vl_text
latent attention in a form of its own: twice in a block, or with other norms, scales | deepseek_v3
    mistral4 longcat_flash axk1 youtu sarvam_mla
blocks with Mamba 1, Mamba 2 in every block, or attention whose weights blocks share
    jamba zamba zamba2 mamba mamba2 falcon_mamba
blocks with a recurrent state that no mixer of refimpl computes
    recurrent_gemma rwkv xlstm minimax
a delta rule in a form of its own: a decay per channel, or other gates and norms | qwen3_5_text
    kimi_linear bailing_hybrid lara_mini qwen4_exp qwen4_exp_text
a short convolution in a form of its own, or one inside attention
    lfm3 zaya inkling_text inkling2_text
keys and values that blocks share, or an embedding of its own in every block | gemma3_text
    gemma3n gemma3n_text gemma4_assistant gemma4_unified_assistant
attention in both directions, or to what an encoder computes
    bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert
    data2vec-text electra ernie git marian mbart megatron-bert mllama moshi musicgen musicgen_melody
    mvp pegasus plbart prophetnet rembert roberta roberta-prelayernorm roc_bert roformer trocr
    whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod
attention within buckets of hashed tokens
    reformer
the difference of two softmaxes in place of one
    diffllama
a mixture of experts inside attention
    jetmoe
bytes that are put into patches by a model of their entropy
    blt
activations rounded to 8 bits
    bitnet
blocks that are run several times
    hrm_text inkling2_loop_text dory
positions that are sines and cosines added to the embeddings
    ctrl xglm
attention biases that are learned for each range of distances
    cpmant
attention biases that are computed from the values
    doge
norms of the residual stream itself after each sum
    openai-gpt
residual sums whose two weights differ from block to block
    beam
values of another width than the keys
    mimo_v2_flash
experts that are chosen by logits and weighted by sigmoids
    kolibri1
rotary positions that turn the other way, and a norm of embeddings
    nanochat
a bias that only the attention of the last block has
    gpt_neox_japanese
a head with fewer tokens than the embedding
    apertus1p5_text
a head of two linears with a norm between them
    modernbert-decoder
a text model among others that no one has compared
    emu3 fuyu moss_transcribe_diarize phi4_multimodal
keys and tensors that no table describes (docs/how-to/add-a-family.md adds one)
    aria_text biogpt codegen cohere_compass_text dbrx flint gpt_bigcode gpt_neo granitemoe_swa
    persimmon sarvam_moe
"""
WAY_OUT = "use a model of a family in the table, such as "
REFUSED: dict[str, tuple[str, str]] = {}
_reason = _nearest = ""
for _line in _REFUSALS.strip().splitlines():
    if _line.startswith(" "):
        REFUSED |= dict.fromkeys(_line.split(), (_reason, WAY_OUT + (_nearest or "qwen3")))
    else:
        _reason, _, _nearest = _line.partition(" | ")
