"""Files of other programs as candidates: recognised, refused, and a mistake in each at its step."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import Arrays, write_arrays
from conftest import FIXTURES
from gates import case_of, model_of
from program import ran, refused, run

from refimpl.candidates.names import NAME_MAPS
from refimpl.candidates.program_outputs import ProgramOutputs, read_source
from refimpl.candidates.steps import candidate_steps, completed
from refimpl.model.attention import merge_heads
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.check import Report, check
from refimpl.tokens import Tokens

MODEL, BLOCKS = FIXTURES / "llama", range(4)
FIRST = ("embed", "blocks.*", "final_norm", "logits")
Write = Callable[[Path, Arrays], Path]


@pytest.fixture(scope="module")
def one() -> Case:
    """The forward of one sequence, as most programs run it."""
    whole = case_of("llama")
    tokens = Tokens(np.ascontiguousarray(whole.inputs["token_ids"][:1]), "of the case", "ids")
    return computed_case(whole.model, tokens, replace(whole.recipe, only=FIRST), MODEL)


def single(case: Case) -> Arrays:
    """What a right program in float32 has of each step."""
    return {step: x.astype(np.float32) for step, x in case.expected.items()}


def by_name(case: Case, names: dict[str, str], arrays: Arrays) -> Arrays:
    """Arrays by another program's names, heads beside each other."""
    found: Arrays = {}
    for step, name in names.items():
        for i in BLOCKS if "{}" in name else range(1):
            x = arrays[step.format(i)]
            found[name.format(i)] = merge_heads(x) if x.ndim == 4 else x
    return found


LENS = {
    "blocks.{}.resid_pre": "blocks.{}.hook_resid_pre",
    "blocks.{}.attn_out": "blocks.{}.hook_attn_out",
    "blocks.{}.resid_mid": "blocks.{}.hook_resid_mid",
    "blocks.{}.mlp_out": "blocks.{}.hook_mlp_out",
    "blocks.{}.resid_post": "blocks.{}.hook_resid_post",
    "blocks.{}.q": "blocks.{}.attn.hook_q",
    "blocks.{}.k": "blocks.{}.attn.hook_k",
    "blocks.{}.v": "blocks.{}.attn.hook_v",
    "blocks.{}.q_rope": "blocks.{}.attn.hook_rot_q",
    "blocks.{}.k_rope": "blocks.{}.attn.hook_rot_k",
    "blocks.{}.attn_norm": "blocks.{}.ln1.hook_out",
    "blocks.{}.mlp_norm": "blocks.{}.ln2.hook_out",
    "final_norm": "ln_final.hook_out",
    "logits": "unembed.hook_out",
}
MLX = {
    "embed": "model.embed_tokens",
    "blocks.{}.resid_pre": "model.layers.{}:input",
    "blocks.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.q_rope": "model.layers.{}.self_attn.rope",
    "blocks.{}.k_rope": "model.layers.{}.self_attn.rope:2",
    "blocks.{}.attn_out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.resid_mid": "model.layers.{}.post_attention_layernorm:input",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp_out": "model.layers.{}.mlp.down_proj",
    "blocks.{}.resid_post": "model.layers.{}",
    "final_norm": "model.norm",
    "logits": "lm_head",
}
GGML = {
    "embed": "embd",
    "blocks.{}.attn_norm": "attn_norm-{}",
    "blocks.{}.q": "Qcur-{}",
    "blocks.{}.k": "Kcur-{}",
    "blocks.{}.v": "Vcur-{}",
    "blocks.{}.q_rope": "Qcur-{}:ROPE",
    "blocks.{}.k_rope": "Kcur-{}:ROPE",
    "blocks.{}.attn_out": "attn_out-{}",
    "blocks.{}.resid_mid": "ffn_inp-{}",
    "blocks.{}.mlp_norm": "ffn_norm-{}",
    "blocks.{}.mlp_out": "ffn_out-{}",
    "blocks.{}.resid_post": "l_out-{}",
    "final_norm": "result_norm",
    "logits": "result_output",
}


def lens(case: Case, arrays: Arrays) -> Arrays:
    """TransformerLens has an axis for heads behind that of tokens."""
    found = by_name(case, LENS, arrays)
    head_dim = case.model.config.head_dim
    return {
        k: x.reshape(*x.shape[:2], -1, head_dim) if ".attn." in k else x for k, x in found.items()
    }


def mlx(case: Case, arrays: Arrays) -> Arrays:
    """mlx-lm rotates heads in front of tokens."""
    rotated = {MLX[f"blocks.{{}}.{x}"].format(i): arrays[f"blocks.{i}.{x}"]
               for i in BLOCKS for x in ("q_rope", "k_rope")}  # fmt: skip
    return by_name(case, MLX, arrays) | rotated


def paired(x: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Channels of heads as llama.cpp's converter orders the rows of Llama's q and k."""
    heads = x.reshape(*x.shape[:-1], -1, 2, head_dim // 2)
    return heads.swapaxes(-1, -2).reshape(x.shape)


def ggml(case: Case, arrays: Arrays) -> Arrays:
    """llama.cpp has one sequence, and Llama's channels that rotate together beside each other."""
    found, head_dim = by_name(case, GGML, arrays), case.model.config.head_dim
    return {k: (paired(x, head_dim) if k[0] in "QK" else x)[0] for k, x in found.items()}


def npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path / "arrays.npz", **arrays)  # type: ignore[arg-type]
    return path / "arrays.npz"


def packed(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path / "packed.npz", **arrays)  # type: ignore[arg-type]
    return path / "packed.npz"


def npy_folder(path: Path, arrays: Arrays) -> Path:
    (path / "arrays").mkdir()
    for name, x in arrays.items():
        np.save(path / "arrays" / f"{name}.npy", x)
    return path / "arrays"


def safetensors(path: Path, arrays: Arrays) -> Path:
    return write_arrays(path / "arrays.safetensors", arrays)


@pytest.mark.parametrize(
    ("write", "program"),
    [(npz, None), (packed, lens), (safetensors, mlx), (npy_folder, ggml)],  # files with a colon
)
def test_arrays_of_a_program_are_a_candidate(
    write: Write, program: Any, one: Case, tmp_path: Path
) -> None:
    """Which program's names they are is seen; a mistake is found at its step."""
    right = single(one)
    for step in ("", "blocks.2.v"):
        arrays = right | ({step: right[step] * np.float32(1.001)} if step else {})
        folder = tmp_path / (step or "right")
        folder.mkdir()
        written = write(folder, arrays if program is None else program(one, arrays))
        steps = candidate_steps(one, read_source(written))
        report = check(one, steps.arrays, tuple(steps.asked) or ("*",))
        assert (report.verdict, report.dtype) == ("divergent" if step else "pass", "float32")
        assert step == (report.first.step if report.first else "")
        names = {None: "", lens: "transformer_lens", mlx: "mlx", ggml: "ggml"}
        assert (steps.names, steps.covered) == (names[program], "")
        asked = len(steps.asked) or len(one.expected)
        assert len(report.steps) == asked >= {None: 51, lens: 51, mlx: 51, ggml: 47}[program]


def test_the_command_computes_the_forward_of_a_model(one: Case, tmp_path: Path) -> None:
    ids, arrays = one.inputs["token_ids"], ggml(one, single(one))
    held = npz(tmp_path, arrays | {"token_ids": ids.astype(np.int32)[0]})
    assert "passes: 47 steps of the case's 51" in ran("check", MODEL, held)
    (tmp_path / "other").mkdir()
    apart = npz(tmp_path / "other", arrays | {"ffn_inp-1": -arrays["ffn_inp-1"]})
    np.save(tmp_path / "ids.npy", ids[0])
    words = ("check", MODEL, apart, "--tokens", tmp_path / "ids.npy")
    done = run(*words)
    assert done.code == 1
    again = " ".join(done.out.replace("\\\n", "").split())
    assert again.endswith(f"--only 'blocks.1.resid_mid' --tokens {tmp_path / 'ids.npy'}")
    assert "not covered blocks.*.resid_pre" in done.out
    assert "--tokens FILE" in refused("check", MODEL, apart)
    assert "are not those of" in refused("check", FIXTURES / "cases/llama", held)
    whole = FIXTURES / "cases/llama"
    assert "are not those of" in refused("check", whole, apart, *words[3:])
    document = json.loads(run(*words, "--json").out)
    assert document["covered_in_part"] is None
    assert "blocks.0.resid_pre" in document["not_covered"]


def test_bfloat16_is_what_numpy_calls_a_pair_of_bytes(one: Case, tmp_path: Path) -> None:
    import ml_dtypes

    step = "blocks.0.attn_norm"
    value = one.expected[step].astype(ml_dtypes.bfloat16)
    steps = candidate_steps(one, read_source(npz(tmp_path, {step: value})))
    assert np.array_equal(np.asarray(steps.arrays[step]), value)
    assert check(one, steps.arrays, (step,)).dtype == "bfloat16"


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
    "a bomb": zipped(embed_npy=saved(np.zeros(1 << 25))),
    "one array": saved(np.zeros(3)),
    "nothing": b"",
    "a log that ends": b"cb: Qcur-0 = (f32) MUL_MAT(a, b}) = {2, 1, 1, 1}\n [ 1.0",
    "a log of dots": b"cb: Qcur-0 = (f32) MUL_MAT(a, b}) = {2, 1, 1, 1}\n1.0., 2.0\nsum = 3.0.\n",
    "a log of too few": b"cb: Qcur-0 = (f32) MUL_MAT(a, b}) = {9, 1, 1, 1}\n1.0, 2.0\nsum = 3.0\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "candidate.npz"
    path.write_bytes(HOSTILE[name])
    said = refused("check", FIXTURES / "cases/llama", path)
    assert str(path) in said
    if name in ("saved by torch", "pickled"):
        assert "runs code" in said
    if path.read_bytes()[:2] == b"\x93N":
        return
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "embed.npy").write_bytes(HOSTILE[name])
    refused("check", FIXTURES / "cases/llama", folder)


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    case = FIXTURES / "cases/llama"
    os.mkfifo(tmp_path / "pipe.npz")
    assert "not a regular file" in refused("check", case, tmp_path / "pipe.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert ".npy" in refused("check", case, folder)
    (folder / "embed.npy").write_bytes(header(FLAT.replace("4,", f"{1 << 40},")))
    assert "no whole arrays" in refused("check", case, folder)
    (folder / "embed.npy").unlink()
    os.mkfifo(folder / "embed.npy")
    assert "not a regular file" in refused("check", case, folder)
    assert "not a regular file" in refused("check", case, "/dev/zero")


def printed(name: str, operation: str, x: np.ndarray[Any, Any]) -> str:
    """A tensor as llama-eval-callback prints it: three of each end, four decimals, and the sum."""
    sizes = ([1] * (4 - x.ndim) + [*x.shape])[::-1]
    axes = ", ".join(map(str, sizes))
    lines = [f"common_debug_cb_eval: {name:>24} = (f32) {operation:>10}(w{{32, 32, 1, 1}}, "
             f"x{{32, 5, 1, 1}}}}) = {{{axes}}}"]  # fmt: skip
    shown = [[*range(n)] if n <= 6 else [0, 1, 2, n - 3, n - 2, n - 1] for n in sizes]
    for i2 in shown[2]:
        lines.append("        [")
        for i1 in shown[1]:
            row = x.reshape(sizes[::-1])[0, i2, i1]
            cells = [f"{row[i]:12.4f}" for i in shown[0]]
            cells[3:3] = ["   ..."] if sizes[0] > 6 else []
            lines.append(f"            [{', '.join(cells)}  ],")
        lines.append("        ],")
    return "\n".join([*lines, "    ]", f"    sum = {x.astype(np.float32).sum():f}", ""])


def log(case: Case, arrays: Arrays) -> str:
    """A log: the end of the last block and the logits are those of the last token."""
    head = ["number of input tokens = 16", *(f"  {i}" for i in case.inputs["token_ids"][0]), ""]
    after = [f"{x}-3" for x in ("ffn_inp", "ffn_norm", "ffn_out", "l_out")]
    tensors = []
    for name, x in ggml(case, arrays).items():
        key, _, operation = name.partition(":")
        last = key in (*after, "result_norm", "result_output")
        tensors.append(printed(key, operation or "MUL_MAT", x[-1:] if last else x))
    return "\n".join([*head, *tensors])


def judged_log(case: Case, arrays: Arrays, folder: Path) -> tuple[Report, str]:
    path = folder / "eval.log"
    path.write_text(log(case, arrays))
    candidate = read_source(path)
    steps = candidate_steps(case, candidate)
    assert candidate.ids is not None
    assert np.array_equal(candidate.ids, case.inputs["token_ids"][0])
    return check(case, steps.arrays, tuple(steps.asked)), steps.covered


def test_a_log_of_llama_cpp_is_a_candidate(one: Case, tmp_path: Path) -> None:
    """Corners, sums and the last token alone: the report says how much that is."""
    right = single(one)
    report, covered = judged_log(one, right, tmp_path)
    assert report.verdict == "pass"
    assert len(report.steps) == 47
    assert covered.endswith(" numbers, and sums")
    said = ran("check", MODEL, tmp_path / "eval.log")
    assert f"in part     the candidate shows {covered}; the rest counts as right" in said
    for step, where in (
        ("blocks.1.attn_norm", np.s_[0, 0, 1]),  # a corner
        ("blocks.1.attn_norm", np.s_[0, 7, 9:20]),  # the sum alone
        ("blocks.0.q_rope", np.s_[:, :, ::2]),
        ("blocks.3.mlp_out", np.s_[0, -1, :4]),
        ("logits", np.s_[0, -1]),
    ):
        wrong = right | {step: right[step].copy()}
        wrong[step][where] += np.float32(0.02) * np.abs(right[step]).max()
        first = judged_log(one, wrong, tmp_path)[0].first
        assert first is not None, step
        assert first.step == step
    hidden = right | {"logits": right["logits"].copy()}
    hidden["logits"][:, :-1] *= -1
    assert judged_log(one, hidden, tmp_path)[0].verdict == "pass"  # which is why it is said


@pytest.mark.parametrize("text", ["nan", "inf", "-nan"])
def test_a_number_of_a_log_that_is_none_diverges(text: str, one: Case, tmp_path: Path) -> None:
    number = f"{one.expected['embed'][0, 0, 0]:.4f}"
    path = tmp_path / "eval.log"
    path.write_text(log(one, single(one)).replace(number, text, 1))
    steps = candidate_steps(one, read_source(path))
    report = check(one, steps.arrays, tuple(steps.asked))
    assert report.first is not None
    assert report.first.step == "embed"


def test_the_nearest_numbers_that_a_print_allows() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    x = np.array([1.00004, 2.0002, np.nan, np.nan])
    assert np.allclose(completed(x, truth, 0.5e-4), [1, 2.00015, 3, 4], atol=1e-9 + 2**-23)
    with_sum = completed(x, truth, 0.5e-4, 12.0)
    assert np.allclose(with_sum[2:] - truth[2:], 1.0, atol=1e-3)
    masked = np.ma.masked_array(np.full(4, 9.0), [1, 1, 0, 0])  # type: ignore[no-untyped-call]
    assert completed(masked, truth).tolist() == [1, 2, 9, 9]


def test_saved_logits_of_llama_cpp(one: Case, tmp_path: Path) -> None:
    """`llama-debug --save-logits` keeps those of the last token, and the ids."""
    stem = tmp_path / "data" / "llamacpp-tiny"
    stem.parent.mkdir()
    logits = one.expected["logits"][0, -1].astype("<f4")
    Path(f"{stem}.bin").write_bytes(logits.tobytes())
    Path(f"{stem}.txt").write_text("0: 0.1\n")
    Path(f"{stem}-tokens.bin").write_bytes(one.inputs["token_ids"].astype("<i4").tobytes())
    for path in (stem.parent, Path(f"{stem}.bin")):
        said = ran("check", MODEL, path)
        assert "passes: 1 step of the case's 51" in said
        assert "the candidate shows 264 of 3,168 numbers" in said
    Path(f"{stem}.bin").write_bytes((logits * 1.001).astype("<f4").tobytes())
    assert "divergent, first at logits" in run("check", MODEL, stem.parent).out
    Path(f"{stem}.bin").write_bytes(logits.tobytes()[:-2])
    refused("check", MODEL, stem.parent)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "gemma2", "olmo2", "granite"])
def test_maps_have_a_name_of_its_own_for_each_step(family: str) -> None:
    """So no array is judged as two steps unawares, but for the stream before the first block."""
    for name in ("ggml", "transformer_lens"):
        first = Counter(x.names[0] for x in NAME_MAPS[name](model_of(family)).values())
        assert {x for x, n in first.items() if n > 1} <= {"blocks.0.hook_resid_pre"}


def last_tokens(arrays: Arrays, count: int) -> Arrays:
    """What a program with a cache computes in its last step."""
    return {k: np.ascontiguousarray(x[..., -count:, :]) for k, x in arrays.items()}


@pytest.mark.parametrize(("program", "count"), [(None, 1), (None, 4), (lens, 1), (mlx, 3)])
def test_a_decode_step_is_judged(program: Any, count: int, tmp_path: Path) -> None:
    """The last tokens alone; a position that is off by one in the cached path is found."""
    case, first = case_of("llama"), ("embed", "blocks", "final_norm", "logits")
    right = {k: x for k, x in single(case).items() if k.split(".")[0] in first}
    for step in ("", "blocks.1.k_rope"):
        arrays = right | ({step: np.roll(right[step], 1, axis=2)} if step else {})
        held = last_tokens(arrays, count)
        outputs = ProgramOutputs(held if program is None else program(case, held))
        steps = candidate_steps(case, outputs, decode=True)
        report = check(case, steps.arrays, tuple(steps.asked))
        assert step == (report.first.step if report.first else "")
        assert report.verdict == ("divergent" if step else "pass")
        assert steps.covered
    path = safetensors(tmp_path, last_tokens(right, count))
    said = ran("check", FIXTURES / "cases/llama", path, "--decode")
    assert "passes: 51 steps of the case's 398" in said
    assert "the rest counts as right" in said
    assert run("check", FIXTURES / "cases/llama", path, "--only", "forward").code == 1


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_whose_length_begins_as_another_format_does(length: int, tmp_path: Path) -> None:
    """The first bytes of a safetensors file are a number: 0x80 begins a pickle, 0x4B50 a zip."""
    path, x = tmp_path / "mine.safetensors", np.arange(3.0)
    header = json.dumps({"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}})
    start = length.to_bytes(8, "little")
    path.write_bytes(start + header.ljust(length).encode() + x.tobytes())
    np.testing.assert_array_equal(read_source(path).outputs["a"], x)
