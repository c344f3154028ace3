"""Validation passes what agrees, and fails what does not, at the place where it goes wrong.

A graph is exported once and then damaged, one thing at a time: its numbers, never its names.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import FIXTURES
from gates import GRAPH_CASES, LAYOUTS, layouts, model_of, worst_token
from graph_models import pruned
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from program import Result, run
from program import refused as refused_by

from refimpl import RefimplError, read_model
from refimpl.loading.samples import Tokens
from refimpl.model.forward import forward
from refimpl.onnx.export import export
from refimpl.onnx.recording.model_graph import trace_points
from refimpl.onnx.validate import Validation, validate
from refimpl.oracle import measures

LLAMA = FIXTURES / "llama"
pytestmark = pytest.mark.usefixtures("few_attempts")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our graphs need no process of their own, which costs most of a second each time."""

    class Opened:
        def __init__(self, maker: Any, *arguments: Any, **_: Any) -> None:
            self.made = maker(*arguments)

        def call(self, method: str, *arguments: Any, **_: Any) -> Any:
            return getattr(self.made, method)(*arguments)

    monkeypatch.setattr("refimpl.onnx.session.Isolated", Opened)
    monkeypatch.setattr("refimpl.onnx.session.limit_memory", lambda _: None)


def graph_of(case: str, folder: Path, dtype: str = "float32", **options: Any) -> Path:
    """A fixture's graph with its weights in it, of all trace points by default; made once."""
    words = "-".join(
        [case, dtype, *(f"{name}={value}" for name, value in options.items())]
    )
    path = folder / f"{words}.onnx"
    if not path.exists():
        model = pruned(case, folder) if options.pop("pruned", False) else model_of(case)
        export(model, path, dtype=dtype, **{"outputs": "trace"} | options)
        onnx.save(onnx.load(path), path)
    return path


def fixed(case: str, folder: Path, length: int) -> Path:
    """A graph that says that it takes sequences of one length."""
    proto, path = onnx.load(graph_of(case, folder)), folder / f"{case} {length}.onnx"
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = length
    onnx.save(proto, path)
    return path


def runs(validation: Validation) -> list[tuple[str, tuple[int, ...], int]]:
    """Dtype, shape of the token ids and number of steps of every run."""
    return [
        (x.dtype, x.case.inputs["token_ids"].shape, len(x.steps))
        for x in validation.reports
    ]


@pytest.mark.parametrize("case", layouts(GRAPH_CASES))
def test_every_family_agrees(case: str) -> None:
    model, dtypes = model_of(case), ("float32", "float64")[case not in LAYOUTS :]
    result = validate(model, dtype=dtypes[0] if len(dtypes) == 1 else None, threads=1)
    assert result.verdict == "pass"
    names = [*forward(model, [[1]], trace=True).trace]
    assert tuple(names) == trace_points(model.config)
    shapes = [((n, s), len(names)) for n, s in ((1, 5), (3, 13), (3, 1))]
    assert runs(result) == [(dtype, *x) for dtype in dtypes for x in shapes]
    assert all([step.step for step in x.steps] == names for x in result.reports)
    assert (result.graph, result.notes) == (None, ())


def test_batches_have_one_shape_each() -> None:
    def shapes(*size: int) -> list[tuple[int, ...]]:
        tokens = Tokens(np.zeros(size, np.int64), "by hand", "ids")
        made = validate(model_of("llama"), tokens, dtype="float32", threads=1)
        return [shape for _, shape, _ in runs(made)]

    assert shapes(2, 64) == [(1, 5), (2, 64), (2, 1)]
    assert shapes(1, 5) == [(1, 5), (1, 1)]


@pytest.mark.parametrize(
    ("length", "shapes"), [(5, [(1, 5)]), (8, [(3, 8)]), (13, [(3, 13)])]
)
def test_a_graph_of_one_length_is_judged_on_it(
    length: int, shapes: list[tuple[int, ...]], folder: Path
) -> None:
    path = fixed("gemma3", folder, length)
    result = validate(model_of("gemma3"), graph=path, threads=1)
    assert result.verdict == "pass"
    assert [shape for _, shape, _ in runs(result)] == shapes


def test_a_graph_of_one_length_takes_no_other(folder: Path) -> None:
    path = fixed("llama", folder, 16)
    message = refused_by("validate", LLAMA, "--graph", path)
    assert "a graph for sequences of 16 tokens, and these have 1" in message
    assert "use --seq-len 16" in message
    assert program(LLAMA, "--graph", path, "--seq-len", 16).code == 0
    assert (
        program(LLAMA, "--graph", path, "--seq-len", 20).code == 0
    )  # cut, as other batches


@pytest.mark.parametrize("case", layouts(LAYOUTS, ("llama_sharded", "gpt2", "bamba")))
def test_a_pruned_file_agrees(case: str, folder: Path) -> None:
    model, dtype = pruned(case, folder), "float64" if case == "gpt2" else "float32"
    path = graph_of(case, folder, dtype, pruned=True)
    result = validate(model, graph=path, threads=1)
    assert result.verdict == "pass"
    assert {x.dtype for x in result.reports} == {dtype}
    assert result.notes == ()


Damage = Callable[[onnx.ModelProto], None]


def damage(change: Callable[..., None]) -> Callable[..., Damage]:
    """Bind all arguments but the graph: `bypassed("q")` changes a graph."""
    return lambda *arguments, **options: (
        lambda proto: change(proto, *arguments, **options)
    )


@damage
def number(proto: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    initializer = next(t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(initializer).copy()
    values.flat[0] = change(values.flat[0])
    initializer.CopyFrom(numpy_helper.from_array(values, name))


def node(proto: onnx.ModelProto, output: str) -> NodeProto:
    """The node that makes an array, in the graph or in the block."""
    nodes = [*proto.graph.node, *proto.functions[0].node]
    return next(n for n in nodes if output in n.output)


@damage
def bypassed(proto: onnx.ModelProto, output: str) -> None:
    maker = node(proto, output)
    kept, *_ = maker.input
    maker.CopyFrom(helper.make_node("Identity", [kept], list(maker.output), maker.name))


def shifted_mask(proto: onnx.ModelProto) -> None:
    """Every token sees the one after it, too."""
    later = node(proto, node(proto, "places.0.bias").input[0])
    assert later.op_type == "Greater"
    at = list(proto.graph.node).index(later)
    one = helper.make_node("Constant", [], ["one"], value_int=1)
    step = helper.make_node("Add", [later.input[1], "one"], ["shifted"])
    later.input[1] = "shifted"
    for new in (step, one):
        proto.graph.node.insert(at, new)


@damage
def then(
    proto: onnx.ModelProto,
    op: str,
    output: str,
    factor: float | None = None,
    **attributes: Any,
) -> None:
    """Put one more node behind an output of the graph."""
    maker = node(proto, output)
    maker.output[list(maker.output).index(output)] = "before"
    operands = ["before"]
    if factor is not None:
        proto.graph.initializer.append(
            numpy_helper.from_array(np.float32(factor), "factor")
        )
        operands.append("factor")
    proto.graph.node.append(helper.make_node(op, operands, [output], **attributes))


def as_float64(proto: onnx.ModelProto) -> None:
    """A float32 graph with outputs in float64, whose metadata say float64."""
    for value in proto.graph.output:
        inner = f"{value.name}.float32"
        for names in (x for n in proto.graph.node for x in (n.input, n.output)):
            for i in (i for i, name in enumerate(names) if name == value.name):
                names[i] = inner
        cast = helper.make_node("Cast", [inner], [value.name], to=TensorProto.DOUBLE)
        proto.graph.node.append(cast)
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    says_float64(proto)


def says_float64(proto: onnx.ModelProto) -> None:
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, facts | {"dtype": "float64"})


def without_output(proto: onnx.ModelProto) -> None:
    outputs = proto.graph.output
    outputs.remove(next(value for value in outputs if value.name == "blocks.3.v"))


# The family, the damage, the first point that shows it, and a part of what is said of it.
BROKEN: dict[str, tuple[str, Damage, str, str]] = {
    "one number": (
        "llama",
        number("blocks.2.k_proj.weight", lambda x: x + 0.01),
        "blocks.2.k",
        "channels",
    ),
    "a dropped sum": (
        "llama",
        bypassed("resid_mid"),
        "blocks.0.resid_mid",
        "those of embed",
    ),
    "a mask shifted by one": ("llama", shifted_mask, "blocks.0.attn_out", "the mask"),
    "NaN": (
        "llama",
        number("blocks.1.up_proj.weight", lambda _: np.nan),
        "blocks.1.mlp_out",
        "-inf",
    ),
    "nothing but 0": ("llama", then("Mul", "logits", 0.0), "logits", "never written"),
    "another shape": (
        "llama",
        then("Transpose", "logits", perm=[1, 0, 2]),
        "logits",
        "axes in another order",
    ),
    "another dtype": ("llama", says_float64, "blocks.0.attn_norm", "float32 in some"),
    "float32 passed off as float64": (
        "llama",
        as_float64,
        "blocks.0.attn_norm",
        "float32 in some",
    ),
}


def broken(graph: Path, change: Damage) -> Path:
    """The file of a graph with one thing broken."""
    proto = onnx.load(graph)
    change(proto)
    path = graph.parent / "broken.onnx"
    onnx.save(proto, path)
    return path


def program(*words: object) -> Result:
    return run("validate", *words, "--threads", 1)


TYPICAL = (
    "one number",
    "a dropped sum",
    "a mask shifted by one",
    "NaN",
    "another dtype",
)


@pytest.mark.parametrize("name", layouts(BROKEN, TYPICAL))
def test_what_is_broken_fails_where_it_is_broken(name: str, folder: Path) -> None:
    case, change, point, cause = BROKEN[name]
    path = broken(graph_of(case, folder), change)
    result = program(FIXTURES / case, "--graph", path)
    assert (result.code, result.err) == (1, "")
    (where,) = re.findall(r": divergent, first at (\S+): ", result.out)
    assert where == point
    assert cause in result.out
    assert "passes:" not in result.out


def test_a_step_that_is_missing_is_never_a_pass(folder: Path) -> None:
    result = program(
        LLAMA, "--graph", broken(graph_of("llama", folder), without_output)
    )
    assert result.code == 3
    assert "1 step missing: blocks.3.v" in result.out


def test_a_graph_with_logits_only_is_compared_by_its_logits(folder: Path) -> None:
    path = graph_of("llama", folder, outputs="logits")
    good = program(LLAMA, "--graph", path)
    assert good.code == 0
    assert "the graph has 1 of 51 trace points" in good.out
    change = number("blocks.0.q_proj.weight", lambda x: x + 0.01)
    bad = program(LLAMA, "--graph", broken(path, change))
    assert bad.code == 1
    assert "first at logits" in bad.out


def test_json_says_what_the_table_says(folder: Path, tmp_path: Path) -> None:
    case, change, point, _ = BROKEN["NaN"]
    path = broken(graph_of(case, folder), change)
    out = tmp_path / "validation.json"
    result = program(FIXTURES / case, "--graph", path, "--json", "-o", out)
    assert result.code == 1
    document = json.loads(result.out)
    assert document == json.loads(out.read_text("utf-8"))
    assert document["verdict"] == "fail"
    first = document["runs"][0]["first"]
    assert (first["step"], first["error"], document["runs"][0]["shape"]) == (
        point,
        None,
        [1, 5],
    )
    assert "NaN among" in first["fault"]
    reports = validate(model_of(case), graph=path, threads=1).reports
    errors = [[step["error"] for step in run["steps"]] for run in document["runs"]]
    finite = [
        [x.error if np.isfinite(x.error) else None for x in r.steps] for r in reports
    ]
    assert errors == finite


def test_tokens_of_a_text_and_a_longest_sequence(tmp_path: Path) -> None:
    rows = tmp_path / "ids.npy"
    np.save(rows, np.arange(64).reshape(1, 64))
    for case, option, value, text in (
        ("llama", "--text", FIXTURES / "text.txt", "text.txt"),
        ("llama", "--tokens", rows, "forward float32 [1, 64]"),
        (
            "mistral",
            "--seq-len",
            5,
            "no sample is longer than the window of 5: use 13 tokens",
        ),
    ):
        result = program(FIXTURES / case, option, value, "--dtype", "float32")
        assert (result.code, text in result.out) == (0, True)


def refused(*words: object, model: Path = LLAMA) -> str:
    return refused_by("validate", model, *words, "--threads", 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\x00 no graph", "no ONNX graph"), (b"", "one input of integers")],
)
def test_a_file_that_is_no_graph_is_refused(
    content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    assert says in refused("--graph", tmp_path / "x.onnx")


def test_what_cannot_be_used_is_refused(folder: Path, tmp_path: Path) -> None:
    graph = graph_of("llama", folder)
    assert "No such file" in refused("--graph", tmp_path / "none.onnx")
    assert "--dtype float64 with" in refused("--graph", graph, "--dtype", "float64")
    assert "at most 64" in refused("--seq-len", 65)
    with pytest.raises(RefimplError, match="float32 or float64"):
        export(model_of("llama"), tmp_path / "y.onnx", dtype=np.float16)
    assert "is also --graph" in refused("--graph", graph, "-o", graph)


def test_a_graph_without_its_data_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(LLAMA, tmp_path / "llama")
    made = export(read_model(model), model / "model.onnx")
    made.data.unlink()
    assert made.data.name in refused("--graph", made.graph, model=model)


def test_a_graphs_tokens_may_be_of_32_bits(folder: Path) -> None:
    def narrow(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32

    assert (
        program(LLAMA, "--graph", broken(graph_of("llama", folder), narrow)).code == 0
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99), st.floats(1e-9, 1.0))
def test_the_measure_is_that_of_the_gates(
    rows: int, width: int, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(2, rows, width)) * 10.0 ** rng.integers(
        -3, 4, (2, rows, 1)
    )
    wrong = right + size * rng.normal(size=right.shape)
    error, token, _ = measures.error_of("logits", wrong, right)
    assert error == pytest.approx(worst_token(wrong, right))
    assert error == pytest.approx(worst_token(wrong[token], right[token]))


def test_a_token_that_should_be_0_must_be_0() -> None:
    right, wrong = (
        np.array([[0.0, 0.0], [1.0, 0.0]]),
        np.array([[0.0, 1e-30], [1.0, 0.0]]),
    )
    assert measures.error_of("logits", wrong, right)[:2] == (np.inf, (0,))
    assert measures.error_of("logits", right, right)[0] == 0
    nothing = np.zeros((2, 2))
    assert measures.error_of("embed", nothing, nothing) == (0, (0,), "")
