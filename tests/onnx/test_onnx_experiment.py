"""The experiment as a graph: the same numbers as NumPy's from the same noise, or a refusal.

The recorded graph is run by onnxruntime and by onnx's own evaluator, from a file and in `score`.
NumPy's experiment is itself held against an oracle in test_experiment.py.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import Change, altered
from conftest import FIXTURES
from gates import model_of
from graph_models import FAMILIES, REAL, axes, real_model, reference_session
from program import ran, refused
from refusals import refusal_of

from refimpl import Model, Noise, RefimplError, Request, allocate, read_model, score
from refimpl.allocation.scores_json import document
from refimpl.model.ops import Array
from refimpl.onnx import candidate, runtime, session
from refimpl.onnx.export import export
from refimpl.onnx.recording import model_graph as recording
from refimpl.onnx.runtime import OUTPUTS, on_onnxruntime
from refimpl.onnx.session import Session, check_device, open_session
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment
from refimpl.scoring.measurements import Address, addresses
from refimpl.scoring.score import Scores
from refimpl.tokens import Tokens, text_tokens

PER = "token", "sequence"
CHOICES = list(product(PER, ("isotropic", "channel"), PER, ("include", "exclude")))
FEW = [CHOICES[i] for i in (0b0000, 0b0111, 0b1010, 0b1101)]  # each of two choices with each
TOLERANCES = {"float64": 1e-10, "float32": 1e-4}  # relative; measured below 1e-13 and 1e-5
LENGTH, SINK = 13, 3  # longer than every window of the fixtures; a token id
SMALL = ("--samples", 2, "--seq-len", 12, "--threads", 1)
ONNXRUNTIME = (*SMALL, "--runtime", "onnxruntime")
LLAMA = FIXTURES / "llama"


def plan_of(choice: tuple[Any, ...], etas: tuple[float, ...] = (0.01, 0.5)) -> Noise:
    names = ("noise_scale", "noise_shape", "norm", "sink")
    return Noise(eta=etas, draws=2, seed=7, **dict(zip(names, choice, strict=True)))


@cache
def changed(folder: Path, case: str, change: Change) -> Model:
    """A fixture's model with other weights, in files of its own."""
    return read_model(altered(folder / f"{case}-{change.__name__}", case, change))


def with_sink(arrays: dict[str, Array]) -> None:
    for name, array in arrays.items():
        if re.search(r"(embed_tokens|wte|lm_head)\.weight$", name):
            arrays[name] = array.copy()
            arrays[name][SINK] *= 1000


def all_zero(arrays: dict[str, Array]) -> None:
    """The residual stream of one token is zero everywhere."""
    for name, array in arrays.items():
        arrays[name] = array * ("o_proj" not in name and "down_proj" not in name)
    arrays["model.embed_tokens.weight"][SINK] = 0


@cache
def tokens_of(case: str) -> Tokens:
    ids = np.random.default_rng(3).integers(5, model_of(case).config.vocab_size, (2, LENGTH))
    ids[0, 0], ids[1, 4] = SINK, SINK
    return Tokens(ids, "by hand", "ids")


def both(model: Model, tokens: Tokens, plan: Noise, dtype: str) -> tuple[Scores, Scores]:
    """Scores by NumPy, and by onnxruntime on the CPU."""
    ours = score(model, tokens, plan, dtype=dtype, threads=1)
    runtime = on_onnxruntime(plan, "cpu")
    return ours, score(model, tokens, plan, dtype=dtype, threads=1, runtime=runtime)


def whole(scores: Scores, base: str = "uniform") -> dict[str, Any]:
    """A scores.json, without its entry `run`."""
    wanted = Request(base, correct="absorption")
    made = tuple(allocate(scores, wanted, i) for i in range(len(scores.sweep)))
    content = document(scores, made)
    del content["scores"]["run"], content["scores"]["without_sinks"]  # which is NumPy's alone
    return content


def assert_same(theirs: Scores, ours: Scores, dtype: str, base: str = "uniform") -> None:
    assert_close(whole(theirs, base), whole(ours, base), TOLERANCES[dtype])


def assert_close(actual: Any, expected: Any, tolerance: float, place: str = "") -> None:
    """Everything is equal, and numbers to a tolerance.

    That is relative, and absolute if a number may be near zero though its terms are not. Numbers of
    weights follow from fractions: of at most 10,000 weights in a block, one may differ.
    """
    assert type(actual) is type(expected), place
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_close(actual[key], value, tolerance, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), place
        for i in range(len(expected)):
            assert_close(actual[i], expected[i], tolerance, f"{place}[{i}]")
    elif isinstance(expected, float):
        near_zero = ("stderr", "alignment", "sparsity", "clipped_share")
        size = 1.0 if re.sub(r"\[\d+\]", "", place).endswith(near_zero) else abs(expected)
        assert abs(actual - expected) <= tolerance * size, (place, actual, expected)
    elif "_pruned[" in place:
        assert abs(actual - expected) <= (1 if tolerance > 1e-9 else 0), (place, actual, expected)
    else:
        assert actual == expected, place


@pytest.mark.parametrize(
    ("case", "choice"),
    [(case, c) for i, c in enumerate(CHOICES) for case in (("llama", "gemma3", "gpt2")[i % 3],)]
    + [("gemma3", c) for c in FEW]
    + [("gemma4_small", FEW[0])],
)
def test_the_same_scores_in_float64(folder: Path, case: str, choice: tuple[str, ...]) -> None:
    model = changed(folder, case, with_sink)
    ours, theirs = both(model, tokens_of(case), plan_of(choice), "float64")
    assert_same(theirs, ours, "float64", "owl")
    assert (ours.sinks.sum() > 0) == (choice[-1] == "exclude")


@pytest.mark.parametrize(
    ("case", "choice"),
    list(
        zip(
            (*FAMILIES, "smollm3", "olmo2", "granite", "apertus", "gemma4_small"),
            cycle(FEW),
        )
    ),
)
def test_the_same_scores_in_float32(case: str, choice: tuple[str, ...]) -> None:
    ours, theirs = both(model_of(case), tokens_of(case), plan_of(choice), "float32")
    assert_same(theirs, ours, "float32")


@pytest.mark.parametrize(("scale", "shape"), [("token", "channel"), ("sequence", "isotropic")])
def test_noise_of_expected_length(scale: Any, shape: Any) -> None:
    plan = Noise(eta=(0.5,), noise_scale=scale, noise_shape=shape, noise_norm="expected", seed=7)
    ours, theirs = both(model_of("llama"), tokens_of("llama"), plan, "float64")
    assert_same(theirs, ours, "float64")


@pytest.mark.parametrize("runtime_of", [open_session, reference_session])
@pytest.mark.parametrize(("case", "dtype"), [("gemma3", "float32"), ("gpt2", "float64")])
def test_one_file_serves_every_length_and_number_of_states(
    folder: Path, case: str, dtype: str, runtime_of: Callable[[Path], Session]
) -> None:
    model, plan = changed(folder, case, with_sink), plan_of(CHOICES[7])
    path = folder / f"{case}-{dtype}.onnx"
    if not path.exists():
        export(model, path, dtype=dtype, experiment=plan)
    opened, states = runtime_of(path), addresses(1, model.config.num_blocks, plan)
    for length in (1, 5, LENGTH):
        ids = tokens_of(case).ids[1:, :length].copy()
        for some in (states, states[1::3], [Address(0, 1, 1, model.config.num_blocks - 1)]):
            check(opened, model, ids, plan, some, dtype)


def check(
    opened: Session, model: Model, ids: Array, plan: Noise, states: list[Address], dtype: str
) -> None:
    """Compare all outputs of a graph for some states of one sequence with NumPy's."""
    with Settings(dtype, threads=1, memory=1 << 30).open() as resources:
        expected = experiment(model, ids, plan, resources)
    tolerance = TOLERANCES[dtype]
    part = sorted(states, key=lambda a: a.block)
    outputs = opened.run(runtime._inputs(ids, part, plan, model.config.hidden_size))
    assert outputs.keys() == {*OUTPUTS, "coefficient"}
    measured = {"drift": expected.drift, "alignment": expected.alignment, "ratio": expected.ratios}
    for i, a in enumerate(part):
        state = (a.variant, 0, a.draw, a.block)
        for name, values in measured.items():
            np.testing.assert_allclose(outputs[name][i], values[state], tolerance, err_msg=name)
    np.testing.assert_array_equal(outputs["sinks"], expected.sinks)
    assert np.isfinite(outputs["mean_square"]).all()
    for block, coefficient in enumerate(outputs["coefficient"]):
        mine = [expected.ratios[a.variant, 0, a.draw, a.block] for a in part if a.block == block]
        mean = np.mean(mine) if mine else np.nan
        np.testing.assert_allclose(coefficient, mean, rtol=tolerance)


@pytest.mark.parametrize("norm", ["token", "sequence"])
@pytest.mark.parametrize("scale", ["token", "sequence"])
def test_tokens_that_have_no_ratio(folder: Path, scale: str, norm: str) -> None:
    """Noise relative to a state of zeros is zero, and the state has no relative drift."""
    model, plan = changed(folder, "llama", all_zero), plan_of((scale, "isotropic", norm, "include"))
    ours, theirs = both(model, tokens_of("llama"), plan, "float64")
    assert_same(theirs, ours, "float64")
    per_token = 2 * plan.draws if norm == "token" else 0  # the token is in both sequences
    for swept in (*ours.sweep, *theirs.sweep):
        np.testing.assert_array_equal(swept.left_out, per_token)
        np.testing.assert_allclose(swept.coefficient, 1, rtol=1e-10)


def test_perturbations_that_rounding_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 an eta of 1e-12 changes nothing: no token has a ratio, no block a coefficient."""
    monkeypatch.setattr("refimpl.scoring.score.require_resolved", lambda *_: None)
    plan = plan_of(CHOICES[0], (1e-12,))
    ours, theirs = both(model_of("gpt2"), tokens_of("gpt2"), plan, "float32")
    assert_same(theirs, ours, "float32")
    assert np.isnan(theirs.sweep[0].coefficient).all()
    assert (theirs.sweep[0].left_out == 2 * 2 * LENGTH).all()
    assert not theirs.sweep[0].arrival.any()


def test_results_do_not_depend_on_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = changed(folder, "llama", with_sink), plan_of(CHOICES[5])
    each = runtime.state_bytes(model.config, LENGTH, "float64")
    runs = []

    def counted(*arguments: Any, **options: Any) -> Session:
        opened = open_session(*arguments, **options)

        def execute(inputs: Mapping[str, Array], outputs: Any = None) -> dict[str, Array]:
            runs.append(len(inputs["noise"]))
            return opened.run(inputs, outputs)

        return replace(opened, run=execute)

    monkeypatch.setattr(candidate, "open_session", counted)
    scores, tokens = [], tokens_of("llama")
    for states in (2, 6, 1000):
        options: Any = {"memory": states * each, "runtime": on_onnxruntime(plan, "cpu")}
        scores.append(score(model, tokens, plan, dtype="float64", threads=1, **options))
    assert runs == [1] * 32 + [5, 5, 5, 1] * 2 + [16] * 2  # 2 x 4 states per sequence and eta
    for other in scores[:2]:
        assert_close(whole(other, "owl"), whole(scores[2], "owl"), 1e-12)


kept_tokens, perturbed = recording.kept_tokens, recording.perturbed
given_inputs = runtime._inputs


def the_last_state(x: Any) -> Any:
    return x.graph.add("Slice", x, [-1], [recording.END], [0], axes=(1, *x.axes[1:]))


def one_block_early(*arguments: Any) -> dict[str, Array]:
    inputs = given_inputs(*arguments)
    return inputs | {"perturbed_block": np.maximum(inputs["perturbed_block"] - 1, 0)}


def noise_of_others(*arguments: Any) -> dict[str, Array]:
    inputs = given_inputs(*arguments)
    return inputs | {"noise": inputs["noise"][::-1].copy()}


WRONG: dict[str, tuple[Any, str, Any]] = {
    "a little more noise": (
        recording, "perturbed", lambda h, noise, eta, *x: perturbed(h, noise, eta * 1.001, *x),
    ),
    "noise per sequence": (
        recording, "perturbed", lambda *x: perturbed(*x[:4], "sequence", x[5]),
    ),
    "sinks take part": (recording, "kept_tokens", lambda h, sink: kept_tokens(h, "include")),
    "the share inverted": (recording, "surviving_drift", lambda last, first: first / last),
    "against another state": (recording, "_first", the_last_state),
    "the block before": (runtime, "_inputs", one_block_early),
    "noise of other states": (runtime, "_inputs", noise_of_others),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_graph_fails(folder: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*WRONG[mistake])
    model = changed(folder, "llama", with_sink)
    ours, theirs = both(model, tokens_of("llama"), plan_of(CHOICES[1]), "float64")
    with pytest.raises(AssertionError):  # even by the tolerance of float32
        assert_same(theirs, ours, "float32", "owl")


def check_default(graph: Path, model: Model) -> None:
    plan, ids = Noise(), tokens_of(model.name).ids[:1]
    states = addresses(1, model.config.num_blocks, plan)
    check(open_session(graph, "cpu", threads=1), model, ids, plan, states, "float32")


def test_the_graph_describes_its_inputs_and_outputs(folder: Path) -> None:
    path = folder / "described.onnx"
    options = {
        "noise_scale": "sequence", "noise_shape": "channel", "norm": "sequence", "sink": "exclude",
    }  # fmt: skip
    words = [x for key, value in options.items() for x in ("--variant", f"{key}={value}")]
    ran("export", FIXTURES / "gemma3", "--experiment", *words, "-o", path)
    proto = onnx.load(path)
    assert {value.name: axes(value) for value in proto.graph.input} == {
        "token_ids": [1, "sequence"], "perturbed_block": ["states"], "eta": ["states"],
        "noise": ["states", "sequence", 32],
    }  # fmt: skip
    assert {value.name: axes(value) for value in proto.graph.output} == {
        "drift": ["states", 7], "alignment": ["states", 7], "ratio": ["states"],
        "coefficient": [7], "left_out": ["states"], "sinks": [7], "mean_square": [7],
    }  # fmt: skip
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts.items() >= (options | {"outputs": "experiment", "dtype": "float32"}).items()
    calls = [node.op_type for node in proto.graph.node if node.domain == "refimpl"]
    assert calls == ["block", "perturb", "measure"] * 7
    assert sorted(function.name for function in proto.functions) == ["block", "measure", "perturb"]


def test_the_oldest_operators_compute_it(tmp_path: Path) -> None:
    path = tmp_path / "experiment.onnx"
    ran("export", FIXTURES / "qwen3", "--experiment", "-o", path, "--opset", 18)
    check_default(path, model_of("qwen3"))


def scored(*words: object) -> Any:
    ids = ("--tokens", "random")
    return json.loads(ran("score", FIXTURES / "mistral", *ids, *SMALL, "--json", *words))["scores"]


def not_scored(*words: object) -> str:
    return refused("score", LLAMA, *ONNXRUNTIME, *words)


Gpu = Callable[[Callable[[bytes], bool]], None]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A provider of CUDA's name that loads some graphs, and runs them on the CPU."""
    opened = session._open

    def installed(takes: Callable[[bytes], bool]) -> None:
        def on_gpu(graph: bytes, provider: str, *others: Any) -> Session:
            if provider == session.CUDA and not takes(graph):
                raise RefimplError("out of memory", "a larger GPU", "use another")
            on_cpu = opened(graph, session.CPU, *others)
            return replace(on_cpu, device="cuda (Test)") if provider == session.CUDA else on_cpu

        providers = [session.CUDA, session.CPU]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(session, "_open", on_gpu)
        session._reason_against.cache_clear()

    return installed


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_command_gives_the_same_scores_json(dtype: str) -> None:
    words = ("--dtype", dtype, "--eta", "0.01,0.1", "--base", "dlp", "--draws", 2)
    ours, theirs = scored(*words), scored(*words, "--runtime", "onnxruntime", "--device", "cpu")
    runs = ours.pop("run"), theirs.pop("run")
    assert_close(theirs, ours, TOLERANCES[dtype])
    described = [(entry["runtime"], entry["device"]) for entry in runs]
    assert described == [("numpy", "cpu"), ("onnxruntime", "cpu")]
    assert runs[1]["versions"] == runs[0]["versions"] | {"onnxruntime": onnxruntime.__version__}


def test_without_a_gpu_the_cpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [session.CPU])
    out = tmp_path / "scores.json"
    printed = ran("score", LLAMA, *ONNXRUNTIME, "-o", out, quiet=False)
    assert "experiment by onnxruntime on cpu" in " ".join(printed.split())
    assert json.loads(out.read_text("utf-8"))["scores"]["run"]["device"] == "cpu"
    assert check_device("cpu") == []
    error = not_scored("--device", "cuda")
    assert "CUDAExecutionProvider is not installed" in error
    assert "pip install onnxruntime-gpu" in error


def test_a_gpu_that_does_not_work_is_not_taken(a_gpu: Gpu) -> None:
    a_gpu(lambda graph: False)
    assert scored("--runtime", "onnxruntime")["run"]["device"] == "cpu"
    assert "does not work (out of memory)" in not_scored("--device", "cuda")
    a_gpu(lambda graph: len(graph) < 1000)  # it computes the small product, and not the graph
    assert scored("--runtime", "onnxruntime")["run"]["device"] == "cpu"
    assert "out of memory" in not_scored("--device", "cuda")


def test_a_gpu_of_nonsense_is_not_taken(a_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(lambda graph: True)
    assert check_device("auto") == [session.CUDA]
    right = session._open

    def wrong(*arguments: Any) -> Session:
        opened = right(*arguments)
        return replace(opened, run=lambda *inputs: {"y": opened.run(*inputs)["y"] + 1})

    monkeypatch.setattr(session, "_open", wrong)
    session._reason_against.cache_clear()
    assert check_device("auto") == []
    refusal_of(check_device, "cuda", says="3 x 3")


def test_a_gpu_that_works_is_taken_and_named(a_gpu: Gpu) -> None:
    a_gpu(lambda graph: True)
    for words in ((), ("--device", "cuda")):
        assert scored("--runtime", "onnxruntime", *words)["run"]["device"] == "cuda (Test)"
    assert scored("--runtime", "onnxruntime", "--device", "cpu")["run"]["device"] == "cpu"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = not_scored()
    assert "onnxruntime: not installed" in error
    assert "pip install 'refimpl[onnx]'" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--runtime numpy", "--device with --runtime numpy"),
        ("--perturbation pruning", "use --runtime numpy"),
        ("--perturbation pruning --correct divergence", "use --runtime numpy"),
        ("--correct divergence", "use --runtime numpy"),
        ("--memory 1K", "--memory "),
        ("--eta 1e18", "use --dtype float64, or a smaller --eta"),  # the mean square overflows
        ("--eta 1e25", "use --dtype float64, or a smaller --eta"),  # each square
        ("--eta 1e38", "use --dtype float64, or a smaller --eta"),  # the state
    ],
)
def test_what_is_refused(words: str, message: str) -> None:
    assert message in not_scored("--device", "cpu", *words.split())


@pytest.mark.real
def test_a_real_model_gives_the_same_coefficients() -> None:
    """REFIMPL_REAL=FOLDER pytest -m real tests/onnx/test_onnx_experiment.py -s; as `score`."""
    text = REAL / "text" / "sotu-1901-1979.txt"
    model, plan = real_model("SmolLM2-135M-Instruct", text), Noise()
    tokens = text_tokens(text, model.folder / "tokenizer.json", 2, 128)
    ours = score(model, tokens, plan)
    theirs = score(model, tokens, plan, runtime=on_onnxruntime(plan))
    a, b = (scores.sweep[0].coefficient for scores in (ours, theirs))
    worst = np.max(np.abs(a - b) / a)
    print(f"\n{tokens.source}: {worst:.1e} by onnxruntime on {theirs.run.device}")
    assert worst <= TOLERANCES["float32"]
    for name in ("drift", "alignment"):
        x, y = (np.nan_to_num(getattr(scores.sweep[0], name)) for scores in (ours, theirs))
        np.testing.assert_allclose(y, x, rtol=TOLERANCES["float32"])
    a, b = (scores.signals["dlp"].main for scores in (ours, theirs))
    np.testing.assert_allclose(b, a, rtol=1e-4)
