"""Outputs of modules as a candidate: dumps of transformers, hooks, and names of one's own."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import CASE_NAMES, Arrays, needs_torch, write_arrays
from conftest import HERE
from gates import case_of, model_of
from program import ran, refused, run
from refusals import refusal_of
from safetensors.numpy import save_file

from refimpl.candidates.names import transformers_sources
from refimpl.candidates.program_outputs import debugger_outputs
from refimpl.candidates.steps import module_steps
from refimpl.model.attention import merge_heads
from refimpl.oracle.case import Case, make_case
from refimpl.oracle.check import check, read_candidate
from refimpl.oracle.judging.measures import error_of
from refimpl.oracle.recipe import Recipe
from refimpl.tokens import Tokens

DUMPED = {  # files of transformers 5.24's `model_addition_debugger_context`, and what is in them
    "model.layers.{}_inputs_args_0": "resid_pre",
    "model.layers.{}.input_layernorm_outputs": "attn_norm",
    "model.layers.{}.self_attn.q_proj_outputs": "q",
    "model.layers.{}.self_attn.k_proj_outputs": "k",
    "model.layers.{}.self_attn.v_proj_outputs": "v",
    "model.layers.{}.self_attn.o_proj_outputs": "attn_out",
    "model.layers.{}.post_attention_layernorm_inputs_args_0": "resid_mid",
    "model.layers.{}.post_attention_layernorm_outputs": "mlp_norm",
    "model.layers.{}.mlp.down_proj_outputs": "mlp_out",
}
UNCOVERED = {"q_rope", "k_rope"}


@pytest.fixture(scope="module")
def forward_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The forward of a case alone, which is checked fast."""
    whole = case_of("llama")
    recipe = replace(whole.recipe, only=("embed", "blocks.*", "final_norm", "logits"))
    tokens = Tokens(whole.inputs["token_ids"], "of the case", "ids")
    return make_case(whole.model, tokens, recipe, tmp_path_factory.mktemp("case") / "forward")


def forward_steps(case: Case) -> list[str]:
    first = ("embed", "blocks", "final_norm", "logits")
    return [step for step in case.expected if step.split(".")[0] in first]


def merged(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return merge_heads(x) if x.ndim == 4 else x


def dumped(case: Case, folder: Path) -> Path:
    """The case's own values, float32, in files as transformers names them."""
    last = case.model.config.num_blocks - 1
    files = {
        f".{name}".format(i): f"blocks.{i}.{step}"
        for i in range(last + 1)
        for name, step in DUMPED.items()
    }
    files |= {".model.norm_inputs_args_0": f"blocks.{last}.resid_post"}
    files |= {".model.norm_outputs": "final_norm", "_outputs_logits": "logits"}
    for name, step in files.items():
        value = np.ascontiguousarray(merged(case.expected[step]).astype(np.float32))
        save_file({"data": value}, folder / f"LlamaForCausalLM{name}.safetensors")
    ids = np.asarray(case.inputs["token_ids"])
    for name in ("_inputs_args_0", ".model.embed_tokens_inputs_args_0"):
        save_file({"data": ids}, folder / f"LlamaForCausalLM{name}.safetensors")
    (folder / "LlamaForCausalLM_debug_tree_SUMMARY.json").write_text("{}")
    return folder


def test_a_folder_of_dumps_is_a_candidate(tmp_path: Path) -> None:
    case = case_of("llama")
    arrays = module_steps(case, debugger_outputs(dumped(case, tmp_path)))
    every = forward_steps(case)
    assert [x for x in every if x.split(".")[-1] not in UNCOVERED] == list(arrays)
    for step, value in arrays.items():
        assert np.array_equal(value, case.expected[step].astype(np.float32)), step


def test_the_command_says_what_is_covered(tmp_path: Path, forward_case: Case) -> None:
    case = forward_case
    done = run("check", case.folder, dumped(case, tmp_path))
    assert done.code == 0, done.out
    assert "passes: 43 steps" in done.out
    assert "not covered blocks.*.q_rope, blocks.*.k_rope" in done.out
    path = tmp_path / "LlamaForCausalLM.model.layers.1.mlp.down_proj_outputs.safetensors"
    value = read_candidate(path)["data"]
    save_file({"data": np.ascontiguousarray(value[..., ::-1])}, path)
    report = check(case, module_steps(case, debugger_outputs(tmp_path)), ("blocks.*.mlp_out",))
    assert report.first is not None
    assert report.first.step == "blocks.1.mlp_out"


def test_outputs_of_another_program_are_no_pass(tmp_path: Path, forward_case: Case) -> None:
    """Of its names two happen to be transformers', and the other 41 steps are missing."""
    whole = {f"blocks.{i}.ln.weight": np.zeros(3, np.float32) for i in range(40)}
    for name, step in (("model.norm", "final_norm"), ("lm_head", "logits")):
        whole[name] = forward_case.expected[step].astype(np.float32)
    actual = write_arrays(tmp_path / "hooks.safetensors", whole)
    command = ("check", forward_case.folder, actual, "--names", "transformers")
    done = run(*command)
    assert done.code == 3, done.out
    assert "inconclusive: 2 steps of 43 agree" in done.out
    assert "41 steps missing: embed" in done.out
    assert "passes: 1 step of the case's 51" in ran(*command, "--only", "logits")


def hooked(case: Case) -> dict[str, Any]:
    """Names of one's own: heads apart, blocks in a tuple with something else."""
    outputs: dict[str, Any] = {}
    for i in range(case.model.config.num_blocks):
        outputs[f"h.{i}.query"] = case.expected[f"blocks.{i}.q"].swapaxes(1, 2)
        outputs[f"h.{i}"] = (case.expected[f"blocks.{i}.resid_post"], None)
    return outputs


def test_own_names_are_a_file(tmp_path: Path, forward_case: Case) -> None:
    case, outputs = forward_case, hooked(forward_case)
    names = {f"blocks.{i}.q": [f"h.{i}.q", f"h.{i}.query"] for i in range(4)}
    names |= {f"blocks.{i}.resid_post": [f"h.{i}"] for i in range(4)}
    arrays = module_steps(case, outputs, names)
    assert list(arrays) == sorted(names, key=list(case.expected).index)
    assert all(np.array_equal(x, case.expected[step]) for step, x in arrays.items())
    file = tmp_path / "names.json"
    patterns = {"blocks.{}.q": ["h.{}.q", "h.{}.query"], "blocks.{}.resid_pre": "h.{}.in",
                "blocks.{}.resid_post": ["h.{+1}.in", "h.{}"]}  # fmt: skip
    file.write_text(json.dumps(patterns))
    saved: Arrays = {k: x[0] if isinstance(x, tuple) else x for k, x in outputs.items()}
    actual = write_arrays(tmp_path / "hooks.safetensors", saved)
    done = run("check", case.folder, actual, "--names", file, "--json")
    document = json.loads(done.out)
    statuses = {x["step"]: x["status"] for x in document["steps"]}
    assert done.code == 3  # a step that the file names is asked for
    assert {s for s, x in statuses.items() if x == "missing"} == {
        f"blocks.{i}.resid_pre" for i in range(4)
    }
    assert {s for s, x in statuses.items() if x == "pass"} == set(names)
    wrong = write_arrays(tmp_path / "wrong.safetensors", saved | {"h.0.query": -saved["h.0.query"]})
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
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "use_repr=False" in refused("check", folder, empty)
    actual = write_arrays(tmp_path / "hooks.safetensors", {"my.layer": np.zeros(3)})
    assert "--names FILE" in refused("check", folder, actual, "--names", "transformers")
    names = tmp_path / "names.json"
    for content in ("[]", '{"no.step": "a"}', '{"embed": 3}', '{"embed": ['):
        names.write_text(content)
        refused("check", folder, actual, "--names", names)
    for path, content in (
        ("norm_outputs", {"other": np.zeros(3)}),
        ("norm_outputs", {}),
        ("norm_outputs", b"junk"),
        ("norm_outputs", None),
        ("norm_inputs_args_0", {f"t{i}": np.zeros(1) for i in range(5000)}),
    ):
        folder = tmp_path / "dump"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / f"LlamaForCausalLM.model.{path}.safetensors"
        if content is None:
            file.mkdir()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            write_arrays(file, content)
        said = refused("check", case.folder, folder)
        assert str(file) in said
        assert len(said) < 2_000
    x = case.expected["final_norm"]
    refusal_of(module_steps, case, {"a.model.norm": x, "b.model.norm": x}, says="several names")


@needs_torch
@pytest.mark.parametrize("name", CASE_NAMES)
def test_transformers_dump_and_hooks_agree_with_every_case(name: str, tmp_path: Path) -> None:
    """All but rotated heads; hooks on outputs lack what no module returns."""
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    case, outputs = case_of(name), dict[str, Any]()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        case.model.path, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.from_numpy(np.array(case.inputs["token_ids"]))
    with transformers.model_addition_debugger_context(
        model, debug_path=str(tmp_path), use_repr=False
    ):
        model(ids, use_cache=False)
    for key, module in model.named_modules():
        module.register_forward_hook(lambda _, __, x, key=key: outputs.__setitem__(key, x))
    with torch.no_grad():
        model(ids, use_cache=False)
    every = forward_steps(case)
    rotated = UNCOVERED | ({"resid_mid"} if case.model.config.parallel_residual else set())
    inputs = rotated | {"resid_mid", "resid_pre", "embed", "logits"}
    for found, left_out in ((debugger_outputs(tmp_path), rotated), (outputs, inputs)):
        arrays = module_steps(case, found)
        assert {x for x in every if x.split(".")[-1] not in left_out} <= arrays.keys()
        for step, value in arrays.items():
            truth = case.expected[step]
            error, _, fault = error_of(step, value, truth)
            assert (error < 1e-5, fault) == (True, ""), step


@needs_torch
def test_a_wrong_position_in_the_cache_is_found(tmp_path: Path, forward_case: Case) -> None:
    """The whole sequence at once is right, with the same model: only a decode step shows it."""
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    case = forward_case
    model = transformers.AutoModelForCausalLM.from_pretrained(case.model.path, dtype=torch.float32)
    ids = torch.from_numpy(np.array(case.inputs["token_ids"]))
    for name, shift in (("right", 0), ("wrong", 1)):
        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :-1], cache=cache)
        with transformers.model_addition_debugger_context(
            model, debug_path=str(tmp_path / name), use_repr=False
        ):
            at = torch.full((len(ids), 1), ids.shape[1] - 1 + shift)
            model(ids[:, -1:], cache=cache, position_ids=at)
        (tmp_path / name / "LlamaForCausalLM_inputs_args_0.safetensors").unlink()
    assert "passes: 43 steps" in ran("check", case.folder, tmp_path / "right", "--decode")
    done = run("check", case.folder, tmp_path / "wrong", "--decode")
    assert "divergent, first at blocks.0.attn_out" in done.out


@needs_torch
@pytest.mark.parametrize("fixture", ["olmoe", "llama4_text", "gemma3", "gemma4_small"])
def test_the_hooks_of_the_page_serve_other_families(fixture: str, tmp_path: Path) -> None:
    """Clipped queries, a complex rotation, and outputs that are views of another order."""
    pytest.importorskip("transformers")
    ids = Tokens(np.arange(8, 40).reshape(2, 16), "of the test", "ids")
    recipe = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
    case = make_case(model_of(fixture), ids, recipe, tmp_path / "case")
    program = (HERE.parent / "docs" / "how-to" / "check.md").read_text()
    program = program.partition("python - <<'END'\n")[2].partition("\nEND\n")[0]
    for name, path in (
        ("fixtures/llama", case.model.path),
        ("fixtures/cases/llama", case.folder),
        ("hooks.safetensors", tmp_path / "hooks.safetensors"),
    ):
        program = re.sub(f'"{name}(?=["/])', f'"{path}', program)
    exec(program, {})
    done = run("check", case.folder, tmp_path / "hooks.safetensors", "--names", "transformers")
    assert done.code == 0, done.out


def test_values_after_a_norm_without_weights_are_in_no_module_that_is_known() -> None:
    known = transformers_sources(model_of("gemma4_small"))
    assert {"blocks.0.q", "blocks.0.k", "blocks.4.block_embed_out"} <= known.keys()
    assert [name for name in known if name.endswith(".v")] == []  # that of v_proj is another value


def test_a_complex_step_diverges_by_name() -> None:
    case = case_of("llama")
    report = check(case, {"logits": case.expected["logits"] + 0j}, ("logits",), "float32")
    assert report.first is not None
    assert report.first.fault == "dtype complex128, expected a float"
