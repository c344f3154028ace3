"""The families that refimpl reads, one file per lineage, and those that it refuses by name."""

from refimpl.loading.families import cohere, deepseek, falcon, gemma, gpt, hybrids, llama, mixtures
from refimpl.loading.families.family import Family, Location, only, unread

__all__ = ["ALIASES", "FAMILIES", "REFUSED", "Family", "Location"]

LINEAGES = (llama, gemma, cohere, falcon, gpt, mixtures, deepseek, hybrids)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family.model_type
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

# Names, what they compute that the forward does not, and the nearest family if it is not qwen3
_REFUSALS = """
deepseek_v32 deepseek_v4 glm_moe_dsa axk2 hy_v4 dots3_note dots3_note_text minimax_m3_vl_text =
    attention to a few earlier tokens, which an index of its own chooses
mistral4 longcat_flash axk1 youtu sarvam_mla = latent attention in a form of its own: twice in a
    block, or with other norms, scales | deepseek_v3
jamba zamba zamba2 mamba mamba2 falcon_mamba = blocks with Mamba 1, Mamba 2 in every block, or
    attention whose weights blocks share
recurrent_gemma rwkv xlstm minimax = blocks with a recurrent state that no mixer of refimpl computes
lara_mini qwen4_exp qwen4_exp_text = a delta rule in a form of its own: a decay with
    a lower bound, or other gates and norms | qwen3_5_text
zaya inkling_text inkling2_text = a short convolution in a form of its own, or one inside
    attention
gemma4_assistant gemma4_unified_assistant = keys and values of another model, which it assists |
    gemma4_text
bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert
    data2vec-text electra ernie git marian mbart megatron-bert mllama moshi musicgen musicgen_melody
    mvp pegasus plbart prophetnet rembert roberta roberta-prelayernorm roc_bert roformer trocr
    whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod = attention in both directions, or to what an
    encoder computes
reformer = attention within buckets of hashed tokens
diffllama = the difference of two softmaxes in place of one
jetmoe = a mixture of experts inside attention
blt = bytes that are put into patches by a model of their entropy
bitnet = activations rounded to 8 bits
hrm_text inkling2_loop_text dory = blocks that are run several times
ctrl xglm = positions that are sines and cosines added to the embeddings
cpmant = attention biases that are learned for each range of distances
doge = attention biases that are computed from the values
openai-gpt = norms of the residual stream itself after each sum
beam = residual sums whose two weights differ from block to block
mimo_v2_flash = values of another width than the keys
kolibri1 = experts that are chosen by logits and weighted by sigmoids
nanochat = rotary positions that turn the other way, and a norm of embeddings
gpt_neox_japanese = a bias that only the attention of the last block has
apertus1p5_text = a head with fewer tokens than the embedding
modernbert-decoder = a head of two linears with a norm between them
emu3 fuyu moss_transcribe_diarize phi4_multimodal = a text model among others that no one has
    compared
aria_text biogpt codegen cohere_compass_text dbrx flint gpt_bigcode gpt_neo granitemoe_swa persimmon
    sarvam_moe = keys and tensors that no table describes (docs/how-to/add-a-family.md adds one)
"""
# Families that were removed, and the mechanism that no other family has
_REMOVED = {
    "gemma3n gemma3n_text": "several residual streams (AltUp), a path of low rank beside attention",
    "laguna": "a gate of the heads by softplus, and a number of heads for each block",
    "kimi_linear bailing_hybrid": "a delta rule with a decay for each channel of a key",
    "cohere2_moe": "the mean of experts and shared experts, and positions by the kind of MLP",
}
REFUSED: dict[str, tuple[str, str]] = {
    name: (reason, "compute it with transformers, or use a model of a family such as qwen3")
    for names, reason in _REMOVED.items()
    for name in names.split()
}
for _line in _REFUSALS.replace("\n    ", " ").strip().splitlines():
    _names, _, _reason = _line.partition(" = ")
    _reason, _, _nearest = _reason.partition(" | ")
    _way_out = f"use a model of a family in the table, such as {_nearest or 'qwen3'}"
    REFUSED |= dict.fromkeys(_names.split(), (_reason, _way_out))
