"""Files of other programs as candidates: recognised, refused, and a mistake in each at its step."""

import json
import os
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import EACH_CASE, Arrays, needs_torch, single, write_arrays
from conftest import FIXTURES, HERE
from gates import CASES as FIXTURE_CASES
from gates import NOT_RESOLVED, case_of, model_of
from program import ran, refused, run
from refusals import refusal_of

from refimpl.loading.samples import Tokens
from refimpl.model.attention import merge_heads
from refimpl.oracle.candidates import (
    candidate_steps,
    named_sources,
    read_outputs,
    transformers_sources,
)
from refimpl.oracle.case import Case, computed_case, make_case
from refimpl.oracle.case_folders import FORWARD
from refimpl.oracle.check import check
from refimpl.oracle.measures import array_of, error_of
from refimpl.oracle.recipe import Recipe

MODEL, NAMES = FIXTURES / "llama", HERE.parent / "docs" / "how-to" / "names"
LLAMA = FIXTURES / "cases" / "llama"
MODULES = {  # transformers' of Llama; none returns what is rotated
    "embed": "model.embed_tokens",
    "blocks.{}.resid_pre": "model.layers.{}:input",
    "blocks.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attn_out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.resid_mid": "model.layers.{}.post_attention_layernorm:input",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp_out": "model.layers.{}.mlp.down_proj",
    "blocks.{}.resid_post": "model.layers.{}",
    "final_norm": "model.norm",
    "logits": "logits",
}


@pytest.fixture(scope="module")
def one() -> Case:
    """The forward of one sequence, as most programs run it."""
    whole = case_of("llama")
    tokens = Tokens(
        np.ascontiguousarray(whole.inputs["token_ids"][:1]), "of the case", "ids"
    )
    return computed_case(
        whole.model, tokens, replace(whole.recipe, only=FORWARD), MODEL
    )


@pytest.fixture(scope="module")
def forward_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The forward of a case alone, which is checked fast."""
    whole = case_of("llama")
    tokens = Tokens(whole.inputs["token_ids"], "of the case", "ids")
    folder = tmp_path_factory.mktemp("case") / "forward"
    return make_case(whole.model, tokens, replace(whole.recipe, only=FORWARD), folder)


def module_steps(case: Case, outputs: dict[str, Any]) -> Arrays:
    """The steps that outputs of transformers' modules have."""
    return dict(candidate_steps(case, outputs, Path("transformers"))[0])


def merged(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return merge_heads(x) if x.ndim == 4 else x


def hooked(arrays: Arrays) -> Arrays:
    """Arrays by the names of transformers' modules, heads beside each other."""
    names = {
        step.format(i): x.format(i) for step, x in MODULES.items() for i in range(4)
    }
    return {names[step]: merged(x) for step, x in arrays.items() if step in names}


def npz(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path / "arrays.npz", **arrays)  # type: ignore[arg-type]
    return path / "arrays.npz"


@pytest.mark.parametrize(
    "program", ["own names", "transformers", "mlx-lm", "transformer-lens", "ggml"]
)
def test_arrays_of_a_program_are_a_candidate(
    program: str, one: Case, tmp_path: Path
) -> None:
    """By the steps' names, by transformers', or by a file of the docs; a mistake is at its step."""
    names = NAMES / f"{program}.json"
    file = names if names.exists() else None
    right = single(one)
    for step in ("", "blocks.2.v"):
        arrays = right | ({step: right[step] * np.float32(1.001)} if step else {})
        if program == "transformers":
            written = hooked(arrays)
        elif file is None:
            written = arrays
        else:
            sources = named_sources(str(file), one)
            written = {x[0]: merged(arrays[k])[0] for k, x in sources.items()}
        path = npz(tmp_path, written)
        found, asked = candidate_steps(one, read_outputs(path)[0], file)
        report = check(one, found, asked or ("*",))
        assert (report.verdict, report.dtype) == ("fail" if step else "pass", "float32")
        assert step == (report.first.step if report.first else "")
        assert len(report.steps) == {"transformers": 43, "ggml": 31}.get(program, 51)


def test_the_command_computes_the_forward_of_a_model(one: Case, tmp_path: Path) -> None:
    ids, arrays = one.inputs["token_ids"], hooked(single(one))
    held = npz(tmp_path, arrays | {"token_ids": ids.astype(np.int32)[0]})
    assert "passes: 43 steps of 51" in ran("check", MODEL, held)
    (tmp_path / "other").mkdir()
    wrong = {"model.layers.1.mlp.down_proj": -arrays["model.layers.1.mlp.down_proj"]}
    apart = npz(tmp_path / "other", arrays | wrong)
    np.save(tmp_path / "ids.npy", ids[0])
    words = ("check", MODEL, apart, "--tokens", tmp_path / "ids.npy")
    done = run(*words)
    assert done.code == 1
    again = " ".join(done.out.replace("\\\n", "").split())
    assert again.endswith(f"--only 'blocks.1.mlp_out' --tokens {tmp_path / 'ids.npy'}")
    assert "not covered blocks.*.q_rope, blocks.*.k_rope" in done.out
    assert "--tokens FILE" in refused("check", MODEL, apart)
    assert "are not those of" in refused("check", LLAMA, held)
    assert "are not those of" in refused("check", LLAMA, apart, *words[3:])
    assert "blocks.0.q_rope" in json.loads(run(*words, "--json").out)["not_covered"]


def test_outputs_of_another_program_are_no_pass(
    tmp_path: Path, forward_case: Case
) -> None:
    """Of its names two happen to be transformers', and the other 41 steps are missing."""
    whole = {f"blocks.{i}.ln.weight": np.zeros(3, np.float32) for i in range(40)}
    for name, step in (("model.norm", "final_norm"), ("lm_head", "logits")):
        whole[name] = forward_case.expected[step].astype(np.float32)
    actual = write_arrays(tmp_path / "hooks.safetensors", whole)
    command = ("check", forward_case.folder, actual, "--names", "transformers")
    done = run(*command)
    assert done.code == 3, done.out
    assert "49 steps missing: embed" in done.out
    assert "nothing was judged" not in done.out
    assert "passes: 1 step of 51" in ran(*command, "--only", "logits")


@pytest.mark.parametrize("name", ["llama", "cohere", "gemma2"])
def test_a_head_gives_the_logits_unless_they_are_scaled_or_capped(name: str) -> None:
    names = transformers_sources(model_of(name))["logits"]
    assert ("lm_head" in names) == (name == "llama")


def test_own_names_are_a_file(tmp_path: Path, forward_case: Case) -> None:
    case, saved = forward_case, Arrays()
    names = {f"blocks.{i}.{x}" for i in range(4) for x in ("q", "resid_post")}
    file = tmp_path / "names.json"
    patterns = {
        "blocks.{}.q": ["h.{}.q", "h.{}.query"],
        "blocks.{}.resid_pre": "h.{}.in",
        "blocks.{}.resid_post": ["h.{+1}.in", "h.{}"],
    }
    file.write_text(json.dumps(patterns))
    for i in range(4):
        saved[f"h.{i}.query"] = case.expected[f"blocks.{i}.q"].swapaxes(
            1, 2
        )  # heads apart
        saved[f"h.{i}"] = case.expected[f"blocks.{i}.resid_post"]
    actual = write_arrays(tmp_path / "hooks.safetensors", saved)
    done = run("check", case.folder, actual, "--names", file, "--json")
    document = json.loads(done.out)
    statuses = {x["step"]: x["status"] for x in document["steps"]}
    assert done.code == 3  # a step that the file names is asked for
    assert {s for s, x in statuses.items() if x == "missing"} == {
        f"blocks.{i}.resid_pre" for i in range(4)
    }
    assert {s for s, x in statuses.items() if x == "pass"} == names
    wrong = write_arrays(
        tmp_path / "wrong.safetensors", saved | {"h.0.query": -saved["h.0.query"]}
    )
    again = run("check", case.folder, wrong, "--names", file).out.splitlines()[-1]
    assert again.endswith(f"--only 'blocks.0.q' --names {file}")
    assert len(document["not_covered"]) == len(case.expected) - 12


def test_prefixes_may_be_absent() -> None:
    case, right = case_of("llama"), case_of("llama").expected
    for prefix in ("", "model.", "module.model."):
        outputs = {f"{prefix}norm": right["final_norm"]}
        assert list(module_steps(case, outputs)) == ["final_norm"]
    block = {"layers.1.input_layernorm": right["blocks.1.attn_norm"]}
    assert list(module_steps(case, block)) == ["blocks.1.attn_norm"]
    assert "final_norm" not in module_steps(case, block | {"model.layers.0.x.norm": 1})


def test_an_output_of_another_size_diverges(forward_case: Case) -> None:
    case = forward_case
    q = merged(case.expected["blocks.0.q"])[..., :-8]
    arrays = module_steps(case, {"model.layers.0.self_attn.q_proj": q})
    report = check(case, arrays, ("blocks.0.q",))
    assert report.first is not None
    assert report.first.fault.startswith("shape")


def test_what_cannot_be_used_is_refused(tmp_path: Path, forward_case: Case) -> None:
    case, folder = forward_case, forward_case.folder
    actual = write_arrays(tmp_path / "hooks.safetensors", {"my.layer": np.zeros(3)})
    assert "--names FILE" in refused("check", folder, actual, "--names", "transformers")
    names = tmp_path / "names.json"
    for content in ("[]", '{"no.step": "a"}', '{"embed": 3}', '{"embed": ['):
        names.write_text(content)
        refused("check", folder, actual, "--names", names)
    x = case.expected["final_norm"]  # which of two is not guessed
    refusal_of(
        module_steps,
        case,
        {"a.model.norm": x, "b.model.norm": x},
        says="no output belongs",
    )


def test_bfloat16_is_what_numpy_calls_a_pair_of_bytes(
    one: Case, tmp_path: Path
) -> None:
    import ml_dtypes

    step = "blocks.0.attn_norm"
    value = one.expected[step].astype(ml_dtypes.bfloat16)
    found, _ = candidate_steps(one, read_outputs(npz(tmp_path, {step: value}))[0])
    assert np.array_equal(np.asarray(found[step]), value)
    assert check(one, found, (step,)).dtype == "bfloat16"


def header(text: str, version: int = 1) -> bytes:
    """A `.npy` file with a header."""
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def zipped(**members: bytes) -> bytes:
    """A zip archive."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = BytesIO()
    np.save(file, value)
    return file.getvalue()


GOOD = zipped(embed_npy=saved(np.zeros((1, 16, 32), np.float32)))
FLAT = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"
HOSTILE = {
    "objects": zipped(embed_npy=saved(np.array([{}, []], object))),
    "saved by torch": zipped(**{"x/data_pkl": b"\x80\x02}q\x00."}),
    "pickled": b"\x80\x04\x95\x00.",
    "cut": GOOD[: len(GOOD) // 2],
    "cut at the end": GOOD[:-3],
    "a bit": GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:],
    "no archive": b"PK\x03\x04",
    "no array": zipped(embed_npy=b"what is this"),
    "no header": zipped(embed_npy=b"\x93NUMPY\x01\x00\xff\xff"),
    "long header": zipped(embed_npy=header(FLAT + " " * (1 << 20), 2)),
    "a header of code": zipped(embed_npy=header("__import__('os').abort()")),
    "a deep header": zipped(embed_npy=header("(" * 9000)),
    "short": zipped(embed_npy=header(FLAT)),
    "negative": zipped(embed_npy=header(FLAT.replace("4,", "-2, -2")) + b"0" * 16),
    "huge": zipped(embed_npy=header(FLAT.replace("4,", f"{1 << 40},"))),
    "a header of sums": zipped(embed_npy=header(FLAT.replace("4,", "1 << 40,"))),
    "empty and huge": zipped(embed_npy=header(FLAT.replace("4,", f"{2**62}, 0, 7"))),
    "fields": zipped(embed_npy=saved(np.zeros(2, [("a", "f4"), ("b", "f4")]))),
    "text": zipped(embed_npy=saved(np.array(["a"]))),
    "long double": zipped(embed_npy=saved(np.zeros(2, np.longdouble))),
    "a bomb": zipped(embed_npy=saved(np.zeros(1 << 24))),
    "one array": saved(np.zeros(3)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "candidate.npz"
    path.write_bytes(HOSTILE[name])
    assert str(path) in refused("check", LLAMA, path)


def test_pipes_folders_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", tmp_path, "/dev/zero"):
        assert re.search(
            "not a regular file|Is a directory", refused("check", LLAMA, path)
        )


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_whose_length_begins_as_another_format_does(
    length: int, tmp_path: Path
) -> None:
    """The first bytes of a safetensors file are a number: 0x80 begins a pickle, 0x4B50 a zip."""
    path, x = tmp_path / "mine.safetensors", np.arange(3.0)
    header = json.dumps({"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}})
    start = length.to_bytes(8, "little")
    path.write_bytes(start + header.ljust(length).encode() + x.tobytes())
    np.testing.assert_array_equal(read_outputs(path)[0]["a"], x)


@needs_torch
@pytest.mark.parametrize("name", EACH_CASE)
def test_transformers_hooks_agree_with_every_case(name: str) -> None:
    """All but rotated heads, and what is the input of a module alone."""
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    case, outputs = case_of(name), dict[str, Any]()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        case.model.path, dtype=torch.float32, attn_implementation="eager"
    )
    for key, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, x, key=key: outputs.__setitem__(
                key, array_of(x[0] if isinstance(x, tuple) else x)
            )
        )
    with torch.no_grad():
        model(torch.from_numpy(np.array(case.inputs["token_ids"])), use_cache=False)
    left_out = ("q_rope", "k_rope", "resid_mid", "resid_pre", "embed", "logits")
    every = [
        x for x in case.expected if x.split(".")[0] in ("embed", "blocks", "final_norm")
    ]
    arrays = module_steps(case, outputs)
    assert {x for x in every if not x.endswith(left_out)} <= arrays.keys()
    for step, value in arrays.items():
        error, _, fault = error_of(step, value, case.expected[step])
        assert (error < 1e-5, fault) == (True, ""), step


REFUSED = {  # what the hooks of the page take of these
    "exaone": 3,  # its own names; transformers has no such model, and reads it as Llama
    "falcon_alibi": 1,  # transformers' eager attention adds the biases twice: families.md
}


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fixture", FIXTURE_CASES)
def test_the_hooks_of_the_page_serve_other_families(
    fixture: str, dtype: str, tmp_path: Path
) -> None:
    """With other names of modules, clipped queries, a complex rotation, and views of outputs."""
    pytest.importorskip("transformers")
    ids = Tokens(
        np.random.default_rng(0).integers(5, 40, (2, 24)), "of the test", "ids"
    )
    recipe = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
    case = make_case(model_of(fixture), ids, recipe, tmp_path / "case")
    program = (HERE.parent / "docs" / "how-to" / "candidates.md").read_text()
    program = program.partition("python - <<'END'\n")[2].partition("\nEND\n")[0]
    for name, path in (
        ("fixtures/llama", case.model.path),
        ("fixtures/cases/llama", case.folder),
        ("hooks.safetensors", tmp_path / "hooks.safetensors"),
    ):
        program = re.sub(f'"{name}(?=["/])', f'"{path}', program)
    experts = ', experts_implementation="eager"' if case.model.config.experts else ""
    exec(program.replace("torch.float32", f"torch.{dtype}{experts}"), {})
    done = run(
        "check", case.folder, tmp_path / "hooks.safetensors", "--names", "transformers"
    )
    narrow = 3 if dtype == "bfloat16" and fixture in NOT_RESOLVED else 0
    assert done.code == REFUSED.get(fixture, narrow), done.out


def test_values_after_a_norm_without_weights_are_in_the_module_of_that_norm() -> None:
    known = transformers_sources(model_of("gemma4_small"))
    assert {"blocks.0.q", "blocks.0.k", "blocks.4.block_embed_out"} <= known.keys()
    assert known["blocks.0.v"][0].endswith(".self_attn.v_norm")


def test_a_complex_step_diverges_by_name() -> None:
    case = case_of("llama")
    report = check(
        case, {"logits": case.expected["logits"] + 0j}, ("logits",), "float32"
    )
    assert report.first is not None
    assert report.first.fault == "dtype complex128, expected a float"


def test_another_kind_of_file_is_told_which_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("some text, or a graph")
    refusal_of(
        read_outputs, path, says="is no file of arrays", remedy="validate MODEL --graph"
    )


def test_only_names_the_input_of_a_linear(one: Case, tmp_path: Path) -> None:
    weight = one.model.weights["blocks.0.o_proj.weight"].read(np.float64)
    heads = np.linalg.solve(
        weight, one.expected["blocks.0.attn_out"][0].T
    ).T  # what it reads
    asked = "--only", "blocks.0.attn_heads"
    for x, code in (heads, 0), (heads[:, ::-1], 1):
        arrays = {
            "token_ids": one.inputs["token_ids"],
            asked[1]: x[None].astype(np.float32),
        }
        assert run("check", MODEL, npz(tmp_path, arrays), *asked).code == code
