"""Which tensors are claimed, in every spelling of old files, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import altered, arrays_of, config_of, refusal, same_weights, write
from gates import CASES, model_of
from tables import cases

from refimpl import read_model
from refimpl.model.ops import Array

LAYER = "model.layers.0."
QUERY = f"{LAYER}self_attn.q_proj"


def test_every_fixture_is_claimed() -> None:
    for case in CASES:
        weights = model_of(case).weights.values()
        assert {weight.stored.name for weight in weights} == set(arrays_of(case)), case


def test_all_offenders_are_listed_at_once(tmp_path: Path) -> None:
    def change(arrays: dict[str, Array]) -> None:
        del arrays[f"{LAYER}mlp.up_proj.weight"]
        del arrays["lm_head.weight"]
        arrays["model.norm.weight"] = np.zeros(31, np.float32)
        del arrays[f"{QUERY}.weight"]
        arrays[f"{LAYER}input_layernorm.weight"] = np.zeros(32, bool)
        arrays[f"{QUERY}.bias"] = np.zeros(32, np.float32)
        arrays["model.rotary"] = np.zeros((1, 2))

    error = refusal(altered(tmp_path / "m", "llama", change))
    for line in (
        f"{LAYER}mlp.up_proj.weight: missing (needed for blocks.0.up_proj.weight, shape [44, 32])",
        "lm_head.weight: missing (needed for lm_head.weight, shape [264, 32])",
        "model.norm.weight: expected shape [32], got [31]",
        f"{LAYER}input_layernorm.weight: expected F64, F32, F16, BF16, got BOOL",
        f"{QUERY}.weight: missing (needed for blocks.0.q_proj.weight",
        f"{QUERY}.bias: no role claims it (shape [32])",
        "model.rotary: no role claims it (shape [1, 2])",
    ):
        assert f"\n  {line}" in error.problem, line
    assert error.problem.count("\n") == 7
    assert "7 problems" in error.problem
    assert "a llama model of 4 blocks" in error.expected


def test_norms_of_olmo_as_its_published_files_name_them(tmp_path: Path) -> None:
    def change(arrays: dict[str, Array]) -> None:
        for name in [x for x in arrays if "_layer_norm" in x]:
            new = re.sub("feedforward_layer_norm", "post_attention_layernorm", name)
            arrays[re.sub("attention_layer_norm", "input_layernorm", new)] = arrays.pop(
                name
            )

    path = altered(tmp_path / "m", "olmo_hybrid", change)
    same_weights(read_model(path), model_of("olmo_hybrid"))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "m", {}, config_of("llama")))
    assert "block 3: all its tensors are missing" in error.problem
    assert (
        "model.embed_tokens.weight: missing (needed for embed.weight" in error.problem
    )


def test_a_fused_tensor_is_one_offender(tmp_path: Path) -> None:
    path = altered(
        tmp_path / "m", "gpt2", lambda a: a.pop("transformer.h.1.attn.c_attn.weight")
    )
    assert refusal(path).problem.count("\n") == 1
    fused = f"{LAYER}self_attn.qkv_proj.weight"
    path = altered(
        tmp_path / "n", "phi3", lambda a: a.update({fused: np.zeros((63, 32), "f4")})
    )
    assert (
        "qkv_proj.weight: expected shape [64, 32], got [63, 32]"
        in refusal(path).problem
    )


def test_more_blocks_than_tensors_and_fewer(tmp_path: Path) -> None:
    problem = refusal(
        altered(tmp_path / "m", "llama", lambda _: None, num_hidden_layers=6)
    ).problem
    assert problem.count("\n") == 2
    assert "\n  block 4: all its tensors are missing\n  block 5: all its" in problem
    problem = refusal(
        altered(tmp_path / "m", "llama", lambda _: None, num_hidden_layers=3)
    ).problem
    lost = [name for name in arrays_of("llama") if name.startswith("model.layers.3.")]
    assert len(lost) == problem.count("\n") == 9
    assert all(f"\n  {name}: no role claims it" in problem for name in lost)


def test_the_table_of_positions_must_be_as_long_as_the_model_allows(
    tmp_path: Path,
) -> None:
    path = altered(tmp_path / "m", "opt", lambda _: None, max_position_embeddings=63)
    assert (
        "embed_positions.weight: expected shape [65, 32], got [66, 32]"
        in refusal(path).problem
    )


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{QUERY}.lora_A.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "language_model.model.embed_tokens.weight",
    ],
)
def test_tensors_of_other_models_have_no_role(name: str, tmp_path: Path) -> None:
    error = refusal(
        altered(tmp_path / "m", "gemma3", lambda a: a.update({name: np.eye(2)}))
    )
    assert f"{name}: no role claims it" in error.problem


def renamed(arrays: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    return {
        re.sub(f"^{re.escape(old)}", new, name): array for name, array in arrays.items()
    }


@pytest.mark.parametrize(("case", "old", "new"), cases("loading", "prefixes"))
def test_base_models_have_no_prefix(
    case: str, old: str, new: str, tmp_path: Path
) -> None:
    arrays = renamed(arrays_of(case), old, new)
    assert arrays.keys() != arrays_of(case).keys()
    same_weights(
        read_model(write(tmp_path / "m", arrays, config_of(case))), model_of(case)
    )


def test_a_base_model_whose_head_is_its_own_lacks_it(tmp_path: Path) -> None:
    arrays = renamed(arrays_of("gpt_neox"), "gpt_neox.", "")
    del arrays["embed_out.weight"]
    problem = refusal(write(tmp_path / "m", arrays, config_of("gpt_neox"))).problem
    assert "1 problem between" in problem
    assert "embed_out.weight: missing (needed for lm_head.weight" in problem


@pytest.mark.parametrize(("case", "prefix", "buffers"), cases("loading", "buffers"))
@pytest.mark.parametrize("based", [True, False])
def test_buffers_of_old_files_are_no_matter(
    case: str,
    prefix: str,
    buffers: dict[str, tuple[int, ...]],
    based: bool,
    tmp_path: Path,
) -> None:
    dtypes = (np.float32, np.float16, bool, np.uint8)
    old = "" if based else prefix.split(".")[0] + "."
    arrays = renamed(arrays_of(case), old, "")
    for i in range(3):
        for (name, shape), dtype in zip(buffers.items(), dtypes, strict=False):
            arrays[prefix.format(i).removeprefix(old) + name] = np.ones(shape, dtype)
    model = read_model(write(tmp_path / "m", arrays, config_of(case)))
    same_weights(model, model_of(case))


def test_a_buffer_elsewhere_is_claimed_by_no_role(tmp_path: Path) -> None:
    for name in (
        f"{LAYER}mlp.inv_freq",
        f"{LAYER}self_attn.rotary_emb.inv_freq.old",
        "inv_freq",
    ):
        path = altered(
            tmp_path / "m", "llama", lambda a, n=name: a.update({n: np.ones(4)})
        )
        assert f"{name}: no role claims it" in refusal(path).problem


def test_only_blocks_that_share_keys_and_values_may_have_unused_ones(
    tmp_path: Path,
) -> None:
    unused = {
        f"{name}.weight": np.ones(3)
        for name in ("k_proj", "v_proj", "k_norm", "v_norm")
    }
    for block, fits in ((4, True), (2, False)):
        prefix = f"model.layers.{block}.self_attn."
        more = {f"{prefix}{name}": x for name, x in unused.items()}
        path = altered(tmp_path / "m", "gemma4_small", lambda a, m=more: a.update(m))
        if fits:
            same_weights(read_model(path), model_of("gemma4_small"))
        else:
            assert f"{prefix}v_norm.weight: no role claims it" in refusal(path).problem


@pytest.mark.parametrize("chunk", [1 << 22, 64, 1])
def test_a_tied_head_may_be_stored_again(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.model.weight.CHUNK", chunk)
    embed = arrays_of("llama3")["model.embed_tokens.weight"]
    path = altered(
        tmp_path / "m", "llama3", lambda a: a.update({"lm_head.weight": embed})
    )
    same_weights(read_model(path), model_of("llama3"))

    other = embed.copy()
    other[-1, -1] += 1
    for wrong in (other, embed.view(np.float16), embed.astype(np.float32), embed[:-1]):
        path = altered(
            tmp_path / "m", "llama3", lambda a, w=wrong: a.update({"lm_head.weight": w})
        )
        assert "lm_head.weight: no role claims it" in refusal(path).problem


def test_an_untied_head_is_not_the_embedding() -> None:
    for case, name in (
        ("llama", "lm_head.weight"),
        ("gemma2", "model.embed_tokens.weight"),
    ):
        assert model_of(case).weights["lm_head.weight"].stored.name == name
