"""Shapes of known models, random ones of the same shape on disk, and the operations they take."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

MAX_SHARD = 2 * 10**9  # bytes of a shard, about
POOL = 1 << 24  # random numbers that all weights are cut from


@dataclass(frozen=True)
class Shape:
    """A model of Llama's design (Qwen2 adds biases to q, k and v), and a folder of the real one."""

    name: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True
    family: str = "llama"
    real: str = ""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """[out, in] of every linear of a block, by the files' names."""
        d, f, kv = self.hidden, self.intermediate, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }

    @property
    def block_size(self) -> int:
        """Weights in the linears of a block."""
        return sum(out * width for out, width in self.linears.values())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors of the file."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.blocks):
            at = f"model.layers.{i}."
            for name, shape in self.linears.items():
                yield f"{at}{name}.weight", shape
                if self.family == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                    yield f"{at}{name}.bias", shape[:1]
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{at}{norm}.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors in bfloat16."""
        return sum(2 * prod(shape) for _, shape in self.tensors())


SMOL = Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, real="SmolLM2-135M-Instruct")
QWEN = Shape(
    "Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 151936, family="qwen2",
    real="Qwen2.5-Coder-0.5B-Instruct",
)  # fmt: skip
LLAMA_1B = Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 128256)
LLAMA_7B = Shape("Llama-7B", 32, 4096, 11008, 32, 32, 32000, tied=False)
BLOCK_7B = replace(LLAMA_7B, name="one Llama-7B block", blocks=1, vocab=1024, tied=True)
TINY = Shape("tiny", 4, 64, 160, 4, 2, 256)
SMALL = Shape("small", 8, 512, 1536, 8, 8, 1024)


def block_operations(shape: Shape, tokens: int) -> float:
    """Additions and multiplications of a block for one sequence.

    2 T N for the linears, N weights; 2 h T (T + 1) per head for the two products of attention,
    counting only the keys that a token sees. Norms, rotation, softmax and activation not counted.
    """
    return 2.0 * tokens * (
        shape.block_size + shape.heads * shape.head_dim * (tokens + 1)
    )  # fmt: skip


def score_operations(shape: Shape, samples: int, tokens: int, draws: int = 1) -> float:
    """Operations of scoring: per sequence L clean block passes, and L (L - 1) / 2 per draw."""
    passes = shape.blocks + draws * shape.blocks * (shape.blocks - 1) / 2
    return samples * passes * block_operations(shape, tokens)


def config(shape: Shape) -> dict[str, Any]:
    """The `config.json` of a shape."""
    qwen = shape.family == "qwen2"
    return {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        **({} if qwen else {"attention_bias": False, "mlp_bias": False}),
    }


def model_folder(shape: Shape, scratch: Path, models: Path | None) -> Path:
    """The real model where there is one, else a random one, written once."""
    if models is not None and shape.real and (models / shape.real / "config.json").exists():
        return models / shape.real
    folder = scratch / f"{shape.name.replace(' ', '-')}-{shape.blocks}-{shape.hidden}"
    if not folder.exists():
        write_model(folder, shape)
    return folder


def write_model(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write a random bfloat16 model, shard by shard.

    Linears and embeddings are cut, at random places, from one pool of normal numbers of standard
    deviation 0.02; norms are 1.
    """
    random = np.random.default_rng(seed)
    pool = (0.02 * random.standard_normal(POOL, np.float32)).astype(ml_dtypes.bfloat16)
    pool.setflags(write=False)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(shape)))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dims in shape.tensors():
        if sum(2 * prod(d) for d in (*shards[-1].values(), dims)) > MAX_SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = dims
    files, total = {}, f"{len(shards):05}"
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{total}.safetensors" if shards[1:] else "model.safetensors"
        files |= dict.fromkeys(shard, file)
        tensors = {}
        for name, dims in shard.items():
            start = int(random.integers(POOL // 2))
            cut = np.resize(pool[start:], dims)
            tensors[name] = np.ones_like(cut) if "norm" in name else cut
        save_file(tensors, folder / file, {"format": "pt"})
    if shards[1:]:
        index = {"metadata": {"total_size": shape.file_bytes}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
