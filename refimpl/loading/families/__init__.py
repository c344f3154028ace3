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
from refimpl.loading.families.family import BASE, Family, Location

__all__ = ["FAMILIES", "REFUSED", "Family", "Location"]

LINEAGES = (llama, gemma, cohere, falcon, gpt, mixtures, deepseek, hybrids)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for lineage in LINEAGES
    for family in vars(lineage).values()
    if isinstance(family, Family) and family is not BASE
}

# What some compute that the forward does not, and the way out
QWEN = "use a model of a family in the table, such as qwen3"
REFUSED = {
    name: (reason, way_out)
    for names, reason, way_out in (
        (
            "deepseek_v32 deepseek_v4 glm_moe_dsa axk2 hy_v4 dots3_note dots3_note_text "
            "minimax_m3_vl_text",
            "attention to a few earlier tokens, which an index of its own chooses",
            QWEN,
        ),
        (
            "mistral4 longcat_flash axk1 youtu sarvam_mla",
            "latent attention in a form of its own: twice in a block, or with other norms, scales",
            "use a model of a family in the table, such as deepseek_v3",
        ),
        (
            "jamba zamba zamba2 mamba mamba2 falcon_mamba",
            "blocks with Mamba 1, Mamba 2 in every block, or attention whose weights blocks share",
            QWEN,
        ),
        (
            "recurrent_gemma rwkv xlstm minimax",
            "blocks with a recurrent state that no mixer of refimpl computes",
            QWEN,
        ),
        (
            "kimi_linear bailing_hybrid lara_mini qwen4_exp qwen4_exp_text",
            "a delta rule in a form of its own: a decay per channel, or other gates and norms",
            "use a model of a family in the table, such as qwen3_5_text",
        ),
        ("lfm3 zaya", "a short convolution in a form of its own, or one inside attention", QWEN),
        (
            "gemma3n gemma3n_text gemma4_assistant gemma4_unified_assistant",
            "keys and values that blocks share, or an embedding of its own in every block",
            "use the family before it, gemma3_text",
        ),
        (
            "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small "
            "camembert data2vec-text electra ernie git marian mbart megatron-bert mllama moshi "
            "musicgen musicgen_melody mvp pegasus plbart prophetnet rembert roberta "
            "roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl "
            "xlnet xmod",
            "attention in both directions, or to what an encoder computes",
            "use a decoder without an encoder, such as qwen3",
        ),
        ("reformer", "attention within buckets of hashed tokens", QWEN),
        ("diffllama", "the difference of two softmaxes in place of one", QWEN),
        ("jetmoe", "a mixture of experts inside attention", QWEN),
        ("blt", "bytes that are put into patches by a model of their entropy", QWEN),
        ("bitnet", "activations rounded to 8 bits", QWEN),
        ("hrm_text", "blocks that are run several times", QWEN),
        (
            "apertus1p5_text aria_text beam biogpt codegen cohere_compass_text cpmant ctrl dbrx "
            "doge dory emu3 flint fuyu got_ocr2 gpt-sw3 gpt_bigcode gpt_neo gpt_neox_japanese "
            "granitemoe_swa inkling2_loop_text inkling2_text inkling_text iquestcoder kolibri1 "
            "mimo_v2_flash modernbert-decoder moss_transcribe_diarize nanochat openai-gpt "
            "persimmon phi4_multimodal sarvam_moe xglm",
            "keys and tensors that no table of refimpl describes",
            "add a table, as docs/how-to/add-a-family.md describes, or use qwen3",
        ),
    )
    for name in names.split()
}
