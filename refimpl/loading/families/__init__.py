"""The families that refimpl reads, one file per lineage, and those that it refuses by name."""

from refimpl.loading.families import gemma, hybrids, layer_normed, llama, mixtures
from refimpl.loading.families.family import Family, Location, only, unread

__all__ = ["ALIASES", "FAMILIES", "REFUSED", "Family", "Location"]

LINEAGES = (llama, gemma, layer_normed, mixtures, hybrids)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family.model_type
}

# Types with the formulas of a family, and their own defaults or tensors (mostly of text models)
QWEN2_VL = llama.QWEN2.like(
    "qwen2",
    rope_theta=1000000.0,
    norm_eps=1e-5,
    num_key_value_heads=8,
    max_window_layers=80,
)
ALIASES = {
    "kimi_k2": mixtures.DEEPSEEK_V3,
    "gpt-sw3": layer_normed.GPT2,
    "iquestcoder": llama.LLAMA.like(
        "llama",
        num_key_value_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        max_position_embeddings=131072,
        **unread("clip_qkv", "use_sliding_window", "sliding_window"),
    ),
    "qwen2_vl_text": QWEN2_VL,
    "qwen2_5_vl_text": QWEN2_VL,
    "qwen3_vl_text": llama.QWEN3.like(
        "qwen3", rope_theta=5e5, max_position_embeddings=128000
    ),
    "qwen3_vl_moe_text": mixtures.QWEN3_MOE.like(
        "qwen3_moe",
        names=mixtures.stacked("layers.{}.mlp.experts", transposed=True, weight=""),
        num_experts=60,
        num_experts_per_tok=4,
        norm_topk_prob=only(True),
        rope_theta=500000.0,
        moe_intermediate_size=1408,
        num_key_value_heads=16,
        max_position_embeddings=128000,
    ),
    "exaone4_5_text": llama.EXAONE4.like(
        "exaone4", buffers=(r"^mtp\..*", *llama.LLAMA.buffers)
    ),
}

REFUSED: dict[str, str] = {  # why, by what the forward does not compute
    model_type: why
    for why, model_types in {
        "attention to a few earlier tokens, which an index of its own chooses": "deepseek_v32 deepseek_v4 glm_moe_dsa axk2 hy_v4 dots3_note dots3_note_text "
        "minimax_m3_vl_text",
        "latent attention in a form of its own": "mistral4 longcat_flash axk1 youtu sarvam_mla",
        "attention in both directions, or to what an encoder computes": "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small "
        "camembert data2vec-text electra ernie git marian mbart megatron-bert mllama moshi "
        "musicgen musicgen_melody mvp pegasus plbart prophetnet rembert roberta "
        "roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl "
        "xlnet xmod",
        "attention in a form of its own, or keys and values of another model": "reformer diffllama jetmoe cpmant doge mimo_v2_flash laguna gemma4_assistant "
        "gemma4_unified_assistant",
        "a recurrent state, delta rule or convolution in a form of its own": "jamba zamba zamba2 mamba mamba2 falcon_mamba recurrent_gemma rwkv xlstm minimax "
        "lara_mini qwen4_exp qwen4_exp_text zaya inkling_text inkling2_text kimi_linear "
        "bailing_hybrid",
        "blocks that are run several times, or rounded, or on patches of bytes": "hrm_text inkling2_loop_text dory bitnet blt",
        "residual streams, norms or biases in a form of its own": "gemma3n gemma3n_text openai-gpt beam gpt_neox_japanese",
        "positions in a form of its own": "ctrl xglm nanochat",
        "experts or a head in a form of its own": "kolibri1 cohere2_moe apertus1p5_text modernbert-decoder",
        "a text model among others that no one has compared": "emu3 fuyu moss_transcribe_diarize phi4_multimodal",
        "keys and tensors that no table describes (docs/how-to/add-a-family.md adds one)": "aria_text biogpt codegen cohere_compass_text dbrx flint gpt_bigcode gpt_neo "
        "granitemoe_swa persimmon sarvam_moe",
    }.items()
    for model_type in model_types.split()
}
