"""llama.cpp's importance matrices in place of calibration tokens."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import FIXTURES
from program import ran, refused
from refusals import refusal_of

from refimpl import Model, Pattern, prune, read_imatrix, read_model
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import dense_squares
from refimpl.tokens.imatrix import Imatrix

NAMES = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"), "attn_heads": ("attn_output",),
    "mlp_norm": ("ffn_gate", "ffn_up"), "mlp_hidden": ("ffn_down",),
}  # fmt: skip
IDS = np.arange(4, 68).reshape(4, 16)


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(FIXTURES / "llama")


def squares_of(model: Model) -> Any:
    """Sums of squares of what the dense model's linears read."""
    with Settings(threads=1).open() as resources:
        return dense_squares(model, IDS, resources)


def imatrix_file(path: Path, model: Model, **changes: Any) -> Path:
    """The importance matrix of these tokens, as llama-imatrix writes it; entries may change."""
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.add_type(changes.pop("type", "imatrix"))
    writer.add_array("imatrix.datasets", ["my.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 16)
    tensors: dict[str, Any] = {}
    for i, sums in enumerate(squares_of(model)):
        for point, names in NAMES.items():
            for name in names:
                key = f"blk.{i}.{name}.weight"
                tensors[f"{key}.in_sum2"] = sums[point].astype(np.float32)[None]
                tensors[f"{key}.counts"] = np.array([[IDS.size]], np.float32)
    for name, value in (tensors | changes).items():
        if value is not None:
            writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_means_are_those_of_the_tokens(model: Model, tmp_path: Path) -> None:
    imatrix = read_imatrix(imatrix_file(tmp_path / "i.gguf", model), model)
    for ours, sums in zip(imatrix.squares, squares_of(model), strict=True):
        assert ours.keys() == sums.keys()
        for point, total in sums.items():
            np.testing.assert_allclose(ours[point], total / IDS.size, rtol=1e-6)
    assert (imatrix.samples, imatrix.seq_len) == (4, 16)
    assert imatrix.source == "i.gguf, my.txt, mean of squares per token"


def test_means_in_an_order_of_llama_cpp_are_refused(model: Model, tmp_path: Path) -> None:
    path, other = imatrix_file(tmp_path / "i.gguf", model), read_model(FIXTURES / "qwen3_5")
    refusal_of(read_imatrix, path, other, says="blocks.0.in_proj_k: no in_sum2")


def test_wanda_prunes_by_it(model: Model, tmp_path: Path) -> None:
    imatrix = read_imatrix(imatrix_file(tmp_path / "i.gguf", model), model)
    prune(model, tmp_path / "out", Pattern(2, 4), tokens=imatrix)
    pruned = read_model(tmp_path / "out")
    for i, sums in enumerate(squares_of(model)):
        for name, point in (("q_proj", "attn_norm"), ("down_proj", "mlp_hidden")):
            dense, new = (
                x.weights[f"blocks.{i}.{name}.weight"].read("f8") for x in (model, pruned)
            )
            score = (np.abs(dense) * np.sqrt(sums[point])).reshape(len(dense), -1, 4)
            worst = np.argsort(score, axis=-1, kind="stable")[..., :2]
            keep = np.ones(score.shape, bool)
            np.put_along_axis(keep, worst, False, axis=-1)
            np.testing.assert_array_equal(new != 0, keep.reshape(dense.shape))


@pytest.mark.parametrize("base", ["owl", "dlp"])
def test_bases_use_it_as_they_use_tokens(base: str, model: Model, tmp_path: Path) -> None:
    path = imatrix_file(tmp_path / "i.gguf", model)
    np.save(tmp_path / "ids.npy", IDS)
    words = ("prune", FIXTURES / "llama", "--sparsity", 0.5, "--allocation", base,
             "--pruner", "magnitude", "--json", "-o")  # fmt: skip
    by_tokens = json.loads(ran(*words, tmp_path / "a", "--tokens", tmp_path / "ids.npy"))
    by_means = json.loads(ran(*words, tmp_path / "b", "--imatrix", path))
    ours, theirs = (
        np.array([[x["requested"] for x in block["linears"]] for block in record["blocks"]])
        for record in (by_means, by_tokens)
    )
    assert np.abs(ours - theirs).max() <= 1  # the file holds float32
    assert np.ptp(theirs, axis=0).min() > 20  # the base matters
    assert by_means["allocation"]["tokens"]["kind"] == "imatrix"


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_lsa_needs_more_than_squares(method: str, model: Model, tmp_path: Path) -> None:
    path = imatrix_file(tmp_path / "i.gguf", model)
    words = ("--sparsity", 0.5, "--allocation", "lsa", "--pruner", method)
    said = refused("prune", FIXTURES / "llama", *words, "--imatrix", path, "-o", tmp_path / "x")
    assert "omit" in said
    assert "--allocation dlp or --allocation owl" in said or "base dlp or owl" in said
    assert [*tmp_path.iterdir()] == [path]


def test_the_record_and_the_table_say_so(model: Model, tmp_path: Path) -> None:
    path = imatrix_file(tmp_path / "i.gguf", model)
    words = ("--nm", "2:4", "--imatrix", path, "-o", tmp_path / "x")
    shown = " ".join(ran("prune", FIXTURES / "llama", *words).split())
    assert "calibration 4 x 16, i.gguf, my.txt, mean of squares per token" in shown
    record = json.loads((tmp_path / "x" / "pruning.json").read_text("utf-8"))
    assert record["calibration"]["kind"] == "imatrix"
    assert record["method"] == "wanda"


Q_SUMS, Q_COUNTS = "blk.2.attn_q.weight.in_sum2", "blk.2.attn_q.weight.counts"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"type": "model"}, "of type 'model'"),
    "a missing linear": ({Q_SUMS: None}, "blocks.2.q_proj: no in_sum2 (of blk.2.attn_q.weight)"),
    "no counts": ({Q_COUNTS: None}, "blocks.2.q_proj: no in_sum2"),
    "another width": ({Q_SUMS: np.ones((1, 31))}, "expected 32 inputs, got [1, 31]"),
    "many matrices": ({Q_SUMS: np.ones((2, 32))}, "expected 32 inputs, got [2, 32]"),
    "negative sums": ({Q_SUMS: -np.ones((1, 32))}, "negative or not finite"),
    "NaN": ({Q_SUMS: np.full((1, 32), np.nan)}, "negative or not finite"),
    "counts of infinity": ({Q_COUNTS: [[np.inf]]}, "negative or not finite"),
    "no token": ({Q_COUNTS: [[0]]}, "no token was counted"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_that_does_not_fit_is_refused(name: str, model: Model, tmp_path: Path) -> None:
    changes, says = BAD[name]
    path = imatrix_file(tmp_path / "i.gguf", model, **changes)
    refusal_of(read_imatrix, path, model, says=says)


def test_options_that_exclude_it(model: Model, tmp_path: Path) -> None:
    path, out = imatrix_file(tmp_path / "i.gguf", model), tmp_path / "out"
    words = ("prune", FIXTURES / "llama", "-o", out, "--imatrix", path)
    for more, says in (
        (("--nm", "2:4", "--text", FIXTURES / "text.txt"), "--text with --imatrix"),
        (("--nm", "2:4", "--pruner", "magnitude"), "--imatrix with --pruner magnitude"),
        (("--nm", "2:4", "--pruner", "sparsegpt"), "--imatrix with --pruner sparsegpt"),
        (("--sparsity", 0.5), "--imatrix with the recommended allocation"),
        (("--sparsity", 0.5, "--allocation", "propagation"), "--imatrix with propagation"),
    ):
        assert says in refused(*words, *more)
    assert not out.exists()
    imatrix = read_imatrix(path, model)
    assert isinstance(imatrix, Imatrix)
    refusal_of(prune, model, out, Pattern(2, 4), "sparsegpt", imatrix, says="importance matrix")
    assert path.exists()
    refused("prune", FIXTURES / "llama", "-o", path, "--imatrix", path, "--nm", "2:4", "--force")
    assert path.exists()
