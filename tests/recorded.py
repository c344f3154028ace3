"""Record every output of a checkout of refimpl, or compare two recordings.

python tests/recorded.py record TREE OUT
python tests/recorded.py compare A B [--texts]
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from safetensors.numpy import load_file, save_file

# JSON keys that depend on the machine, the time or a version: never recorded.
MEASURED = {"seconds", "pace", "tokens_per_second", "peak_memory", "peak", "before", "allowed"}
VERSIONS = {"versions", "refimpl", "ran"}
SCALARS = {"memory"}  # the limit in bytes; an object of that name holds counts and is recorded
TIMES = re.compile(r"[\d,.e-]+(?= (m?s|MiB|tokens per second)\b)|(?<=before )[\d.]+")
# JSON keys with prose or module names: recorded as "<text>", and in full in OUT/texts.
PROSE = {"source", "title", "why", "note", "functions", "fault", "start"}


def entries(table: str) -> list[str]:
    """Split a table of commands or options at its semicolons."""
    return [" ".join(entry.split()) for entry in table.split(";")]


SMALL = "--samples 2 --seq-len 14"
SCORE_OPTIONS = entries("""
sweep: --eta 0.01,1 ; three-etas: --eta 1e-4,1e-2,1 --draws 2 --seed 3 ; draws: --draws 2 --seed 7 ;
sequence: --noise-scale sequence --norm sequence ; channel: --noise-shape channel --sink exclude ;
mixed: --noise-scale sequence --noise-shape channel --norm token --sink exclude --eta 0.1 ;
float64: --dtype float64 ; float64-channel: --dtype float64 --noise-shape channel --eta 0.001,0.1 ;
pruning: --perturbation pruning ;
pruning-owl: --perturbation pruning --base owl --sparsity 0.6 --correct absorption ;
pruning-arrival: --perturbation pruning --correct arrival ;
pruning-divergence: --perturbation pruning --correct divergence --sparsity 0.5 ;
pruning-divergence-max: --perturbation pruning --correct divergence --correction-scale max ;
pruning-none: --perturbation pruning --correct none --base dlp --dtype float64 ; owl: --base owl ;
owl-options: --base owl --base-option m=7 --base-option lam=0.05 ; dlp: --base dlp ;
dlp-median: --base dlp --base-option statistic=median --base-option a=0.1 ;
alphapruning: --base alphapruning ;
alphapruning-mid: --base alphapruning --base-option fit=mid --base-option epsilon=0.2 ;
alphapruning-intended: --base alphapruning --base-option fit=peak --base-option xmin=intended ;
alphapruning-shipped: --base alphapruning --base-option fit=mid --base-option xmin=shipped ;
alphapruning-linear: --base alphapruning --base-option unit=linear ;
alphapruning-linear-mid: --base alphapruning --base-option unit=linear --base-option fit=mid ;
atp: --base atp --base-option beta=0.05 ; json: --base good/blocks.json ;
json-linears: --base good/linears.json --correct none ; csv: --base good/blocks.csv ;
peer-owl: --base owl --compat peer ; peer-dlp: --base dlp --compat peer --sparsity 0.5 ;
peer-alphapruning: --base alphapruning --compat peer ;
peer-atp: --base atp --base-option beta=0.05 --compat peer ;
bounds: --lo 0.65 --hi 0.75 --strength 0.5 --max-correction 0.3 ; subset: --subset 2 ;
subset-draws: --subset 3 --draws 2 --eta 0.1,1 ; scale-max: --correction-scale max --strength 0.02 ;
none: --correct none ; strong: --strength 0.3 --max-correction 0.05 ;
text: --text fixtures/text.txt ; ids: --tokens good/ids.npy ;
rows: --tokens good/rows.jsonl --samples 2 --seq-len 6 ; threads-1: --threads 1 --draws 2 ;
threads-2: --threads 2 --draws 2 ; processes: --executor processes --threads 2 --draws 2 ;
memory: --memory 16K --draws 2 --threads 2 ; resume: --resume ;
onnxruntime: --runtime onnxruntime --device cpu --threads 1 ;
onnxruntime-sweep: --runtime onnxruntime --device cpu --threads 1 --eta 0.01,1 --norm sequence ;
estimate: --estimate --threads 2 ;
estimate-pruning: --estimate --threads 2 --perturbation pruning --base dlp --dtype float64 ;
estimate-subset: --estimate --threads 1 --eta 0.01,1 --draws 3 --subset 2 --memory 1M
""")
ALLOCATE_OPTIONS = entries("""
sweep --sparsity 0.5 ; sweep --sparsity 0 ; sweep --sparsity 1 ;
sweep --sparsity 0.6 --correct none ; sweep --base owl --sparsity 0.55 ;
sweep --base owl --base-option lam=0.15 --correction-scale max ;
sweep --base dlp --lo 0.5 --hi 0.8 ; sweep --base atp --base-option beta=0.05 ;
sweep --base good/blocks.json --strength 0.2 ;
sweep --base good/linears.json --max-correction 0.02 ; sweep --base good/blocks.csv --sparsity 0.7 ;
sweep --base owl --compat peer ; sweep --base dlp --compat peer --sparsity 0.5 ;
sweep --lo 0.69 --hi 0.71 --strength 1 ;
alphapruning --base alphapruning --base-option epsilon=0.1 ;
alphapruning --base alphapruning --sparsity 0.4 --correct none ;
alphapruning-linear --base alphapruning --base-option unit=linear --sparsity 0.5 ;
dlp-median --base dlp --base-option statistic=median --base-option a=0.2 ;
owl-options --base owl --base-option m=7 ; pruning --correct none ;
pruning --correct arrival --strength 0.1 ; pruning-divergence --correct divergence --sparsity 0.5 ;
pruning --correct absorption --correction-scale max ;
pruning-owl --base owl --sparsity 0.6 --correct none ; float64 --sparsity 0.3 ;
subset --sparsity 0.5 ; onnxruntime --base owl
""")
PRUNE_FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3", "gemma3", "opt", "llama_sharded")
PRUNE_OPTIONS = entries("""
--method wanda --sparsity 0.5 ; --method sparsegpt --sparsity 0.6 ;
--method magnitude --sparsity 0.5 --correct none ; --method random --sparsity 0.4 --seed 3 ;
--method wanda --nm 2:4 ; --method sparsegpt --nm 2:4 ; --method wanda --sparsity 0.6 --base owl
""")
PRUNE_LLAMA = entries("""
--method magnitude --sparsity 0.9 --correct none ; --nm 1:4 --method magnitude ;
--nm 2:4 --method random --seed 5 ; --nm 3:4 --method sparsegpt --damping 0.1 ;
--allocation made/score/llama-sweep/scores.json ;
--allocation made/score/llama-pruning-divergence/scores.json --method sparsegpt ;
--allocation made/score/llama-alphapruning-linear/scores.json --method magnitude ;
--sparsity 0.5 --compat peer ; --sparsity 0.5 --compat peer --method sparsegpt ;
--sparsity 0.5 --compat peer --base owl ; --nm 2:4 --compat peer ;
--nm 2:4 --compat peer --method sparsegpt ;
--sparsity 0.5 --perturbation pruning --correct divergence ;
--sparsity 0.5 --dtype float64 --method sparsegpt ;
--sparsity 0.5 --base dlp --text fixtures/text.txt --threads 1 ;
--sparsity 0.5 --executor processes --threads 2 --tokens good/ids.npy ;
--sparsity 0.5 --eta 0.1 --norm sequence --memory 64K ; --sparsity 0.5 --base good/linears.json ;
--sparsity 0.5 --base alphapruning --base-option unit=linear --method sparsegpt
""")
OTHERS = entries("""
eval/text: eval fixtures/llama --text fixtures/text.txt --window 16 ;
eval/windows: eval fixtures/llama --text fixtures/text.txt --window 24 --windows 5 --threads 1 ;
eval/ids: eval fixtures/gpt2 --tokens good/small.jsonl ;
eval/window-ids: eval fixtures/llama --tokens good/ids.npy --window 20 --dtype float64 ;
eval/choices: eval fixtures/llama --choices good/questions.jsonl ;
eval/all: eval fixtures/llama --tokens good/small.jsonl --choices good/questions.jsonl ;
eval/processes: eval fixtures/llama --text fixtures/text.txt --executor processes --threads 2 ;
eval/sharded: eval fixtures/llama_sharded --tokens good/ids.npy --window 20 --memory 1M ;
export/trace: export fixtures/llama --outputs trace ;
export/embedded: export fixtures/gpt2 --weights embedded ;
export/float64: export fixtures/qwen3 --dtype float64 --outputs trace ;
export/fused: export fixtures/gemma2 --fused ;
export/fused-trace: export fixtures/phi3 --fused --outputs trace --opset 24 ;
export/opset: export fixtures/opt --opset 18 ;
export/dense: export made/prune/llama-00/model --sparse never ;
export/sparse: export made/prune/llama-01/model --sparse auto ;
export/very-sparse: export made/prune/llama-07/model --sparse auto --weights embedded ;
export/reference: export made/export/reference --weights reference ;
export/reference-sharded: export made/export/reference-sharded --weights reference ;
export/experiment: export fixtures/llama --experiment ;
export/experiment-options: export fixtures/opt --experiment --noise-scale sequence --norm sequence ;
export/experiment-channel: export fixtures/gemma3 --experiment --noise-shape channel ;
export/experiment-embedded: export fixtures/phi3 --experiment --dtype float64 --weights embedded ;
validate/reference: validate fixtures/llama --against onnx-reference --samples 1 --seq-len 5 ;
validate/tolerance: validate fixtures/gpt2 --tolerance 1e-12 --threads 1 --device cpu ;
explain/block: explain fixtures/llama --block 2 --samples 1 --seq-len 8 ;
explain/step: explain fixtures/llama --step rope --source --seq-len 8 ;
explain/source: explain fixtures/gpt2 --source --seq-len 8 ;
explain/pruning: explain fixtures/llama --perturbation pruning --correct divergence --base owl ;
explain/options: explain fixtures/opt --norm sequence --base dlp --strength 0.2 --compat exact ;
case/opt: case make fixtures/opt --samples 1 --seq-len 8 ;
case/qwen2: case make fixtures/qwen2 --samples 2 --seq-len 8 --eta 0.1 --nm= --shown 1 ;
case/llama: case make fixtures/llama --text fixtures/text.txt --samples 2 --seq-len 9 ;
check/changed: check fixtures/cases/llama good/changed.safetensors --junit-xml {out}/junit.xml ;
check/counts: check fixtures/cases/opt good/counts.safetensors --junit-xml {out}/junit.xml ;
check/float32: check fixtures/cases/llama good/float32.safetensors --dtype float32 ;
check/bfloat16: check fixtures/cases/llama good/float32.safetensors --dtype bfloat16 ;
check/only: check fixtures/cases/llama good/changed.safetensors --only blocks.0.* ;
check/missing: check fixtures/cases/llama good/part.safetensors ;
check/stepwise: check fixtures/cases/llama good/changed.safetensors --stepwise
""")
LAST = entries("""
report/page: report frozen/sweep.json frozen/pruning.json frozen/eval.json ;
report/pruning: report frozen/divergence.json frozen/alphapruning.json frozen/pruning.json ;
check/graph: check fixtures/cases/llama made/export/trace/model.onnx --device cpu ;
check/experiment: check fixtures/cases/llama made/export/experiment/model.onnx --device cpu ;
check/made: check made/case/opt/case made/case/opt/case/expected.safetensors ;
validate/graph: validate fixtures/llama --graph made/export/trace/model.onnx --threads 1 ;
validate/fused: validate fixtures/gemma2 --graph made/export/fused/model.onnx --threads 1 ;
validate/experiment: validate fixtures/llama --graph made/export/experiment/model.onnx --threads 1 ;
validate/sparse: validate made/prune/llama-01/model --graph made/export/sparse/model.onnx ;
validate/pruned: validate made/prune/gemma3-01/model --threads 1 --device cpu ;
eval/pruned: eval made/prune/llama-00/model --text fixtures/text.txt --window 16 ;
score/pruned: score made/prune/gemma3-05/model --samples 2 --seq-len 12 ;
inspect/thin: inspect made/prune/llama-07/model
""")

BAD_OPTIONS = entries("""
--bogus ; extra ; --eta 0 ; --eta -0.1 ; --eta nan ; --eta inf ; --eta 0.1,1e999 ; --eta , ;
--eta 0.1,,1 ; --eta big ; --eta 0.1,0.10 ; --perturbation pruned ; --noise-scale channel ;
--noise-shape round ; --norm max ; --sink drop ; --draws 0 ; --draws many ; --seed -1 ;
--perturbation pruning --eta 0.01 ; --perturbation pruning --noise-scale token ;
--perturbation pruning --noise-shape channel ; --perturbation pruning --draws 2 ; --sparsity -0.1 ;
--sparsity 1.01 ; --sparsity nan ; --sparsity most ; --lo 0.8 ; --hi 0.6 ; --lo 0.9 --hi 0.5 ;
--lo nan ; --hi 2 ; --base owls ; --base bad ; --base owl --base-option lambda=1 ;
--base owl --base-option m ; --base owl --base-option =5 ; --base owl --base-option m= ;
--base owl --base-option m=five ; --base owl --base-option m=nan ;
--base owl --base-option m=5 --base-option m=6 ; --base uniform --base-option m=5 ;
--base dlp --base-option statistic=mode ; --base alphapruning --base-option unit=row ; --base atp ;
--base atp --base-option beta=0.3 ; --base atp --base-option beta=nan ; --correct all ;
--correct arrival ; --correct divergence ; --compat peer --correct absorption ; --compat both ;
--strength nan ; --strength 1e9 ; --max-correction -1 ; --max-correction 2 ;
--correction-scale mean ; --dtype float16 ; --dtype nonsense ; --threads 0 ; --threads -2 ;
--threads two ; --memory nonsense ; --memory 0 ; --memory -1G ; --memory nan ; --memory 100 ;
--samples 0 ; --seq-len 0 ; --seq-len 65 ; --samples few ; --config absent.json ; --config bad ;
--text fixtures/text.txt --tokens good/ids.npy ; --config fixtures/text.txt ; --eta 1e38 ;
--text absent.txt ; --tokens absent.npy ; --text bad ; --executor mpy ; --executor dask= ;
--runtime torch ; --runtime onnxruntime --perturbation pruning ; --device tpu ; --budget 0 ;
--subset 0 ; --subset 9 ; --tokens good/blocks.csv ; --budget nan ; --text good/ids.npy ;
--text fixtures/text.txt --samples 99 --seq-len 60 ; --runtime numpy --device cpu
""")
BAD_COMMANDS = entries("""
score ; score {m} -o ; trim {m} ; --model {m} ; allocate ; prune {m} . ; score absent ;
score absent.safetensors ; score fixtures/text.txt ; score bad ; case ; case cut x ;
score {m} -o {m}/model.safetensors ; score {m} -o {m}/config.json ; score {m} -o bad ;
score {m} -o absent/new.json ; score {m} --resume . ;
score {m} --text fixtures/text.txt -o fixtures/text.txt ; allocate absent.json ; allocate bad ;
score {m} --tokens good/ids.npy -o good/ids.npy ; allocate good/blocks.json ;
allocate {s} --base owl --base-option m=7 ; allocate {s} --base dlp --base-option statistic=median ;
allocate {s} --base alphapruning ; allocate {s} --correct arrival ; allocate {s} --sparsity 2 ;
allocate {s} --base atp --base-option beta=0.4 ; allocate {s} --lo 0.9 ; allocate {s} --eta 0.1 ;
allocate {s} --compat peer --correct absorption ; allocate {s} -o {s} ; allocate {d}-cut.json ;
allocate {d}-format.json ; allocate {d}-blocks.json ; allocate {d}-run.json ;
allocate {p} --sparsity 0.6 ; allocate {p} --base owl ; allocate {p} --lo 0.1 --base owl ;
prune {m} ; prune {m} --nm 2:4 --sparsity 0.5 ; prune {m} --nm 2:4 --base owl ;
prune {m} --allocation {s} --nm 2:4 ; prune {m} --allocation {s} --sparsity 0.5 ;
prune {m} --allocation a.json ; prune {m} --nm 2:5 ; prune {m} --nm 5:4 ; prune {m} --nm two ;
prune {m} --sparsity 1.5 --correct none ; prune {m} -o {m} --nm 2:4 ;
prune {m} --sparsity 0.5 --damping 0.1 ; prune {m} --nm 2:4 --eta 0.1 ;
prune {m} --nm 2:4 --method magnitude --seq-len 4 ; prune fixtures/gpt2 -o bad --nm 2:4 ;
prune {m} --nm 2:4 --method random --compat peer ; prune bad/nan --nm 2:4 ;
prune {m} --nm 2:4 --method sparsegpt --damping -1 ; prune bad/cut --nm 2:4 ;
prune {m} --sparsity 0.5 --correct divergence ; prune {m} --nm 2:4 --memory 1K ;
prune {m} --allocation {d}-count.json ; prune fixtures/gpt2 --allocation {s} ; eval {m} ;
eval {m} --text fixtures/text.txt --tokens good/ids.npy ;
eval {m} --text fixtures/text.txt --questions 3 ; eval {m} --choices no.jsonl --window 8 ;
eval {m} --choices no.jsonl ; eval {m} --text fixtures/text.txt --window 65 ;
eval {m} --text fixtures/text.txt --windows 99 ; eval {m} --choices bad/long.jsonl ;
eval {m} --text fixtures/text.txt --memory 100 ; eval fixtures/gemma2 --text fixtures/text.txt ;
eval {m} --choices good/rows.jsonl ; export {m} -o {out}/x.pb ; export {m} -o no/x.onnx ;
export {m} --opset 17 ; export {m} --opset 26 ; export {m} --opset 21 --fused ; export bad/nan ;
export {m} --fused --dtype float64 ; export bad/config-4 ; export {m} --weights reference ;
export {m} --norm sequence ; export {m} --experiment --outputs trace ;
validate {m} --graph no.onnx ; validate {m} --graph good/ids.npy ; validate {m} --tolerance 0 ;
validate bad/nan ; validate {m} --against onnx-reference --device cuda ; validate {m} --seq-len 65 ;
check fixtures/cases/llama none ; check fixtures/cases/llama bad/cut/model.safetensors ;
check fixtures/cases/llama {m}/model.safetensors ; check fixtures/llama good/part.safetensors ;
check fixtures/cases/llama good/part.safetensors --only nothing.* ;
check bad good/part.safetensors ; check bad/case good/part.safetensors ; explain {m} --step nrm ;
explain {m} --step qk_norm ; explain {m} --block 4 ; explain {m} --block -1 ;
explain {m} --eta 0.01,0.1 ; explain {m} --correct arrival --step base ; explain {m} --seq-len 0 ;
inspect bad/cut ; inspect absent ; inspect bad/nan -o bad/nan/config.json ; report {s} . ;
report {s} -o absent/r.html ; report good/blocks.json ; report {d}-cut.json ; report absent.json ;
report {s} made/prune/gpt2-00/model/pruning.json ; report made/prune/llama-00/model/pruning.json ;
report {s} -o {s} ; report bad ; case make fixtures/opt -o bad ; case make fixtures/opt --shown 9 ;
case make fixtures/opt --nm 2:5 ; case make bad/nan ; case make fixtures/opt --eta 0
""")
BAD_CONFIGS: list[dict[str, Any]] = [
    {"model_type": "mamba"}, {"model_type": 3}, {"quantization_config": {"bits": 4}},
    {"hidden_act": "mish"}, {"logit_tricks": 3}, {"num_attention_heads": "four"},
    {"rope_parameters": {"rope_type": "yarn", "factor": 2}}, {"hidden_size": -32},
    {"num_key_value_heads": 3}, {"intermediate_size": 48}, {"num_hidden_layers": 3},
    {"vision_config": {"hidden_size": 3}}, {"hidden_act": "mish", "x": 3, "rms_norm_eps": -1},
]  # fmt: skip
BAD_TEXTS = {
    "config": ("", "nonsense", "[1]", "[" * 100_000, "null"),
    "base.json": (
        *("", "0.7", "{}", "[]", "[0.7, 0.7, 0.7]", '[0.7, 0.7, 0.7, "x"]', "[0.7, 0.7, 0.7, NaN]"),
        *("[0.7, 0.7, 0.7, 1.1]", "[[0.7, 0.7], [0.7, 0.7]]", '{"blocks.0": 0.7}', "nonsense"),
    ),
    "base.csv": ("", "nonsense", "0.7\n0.7\n0.7\n", "0.7\n0.7\n0.7\n1.5\n", "blocks.0,0.7\n" * 4),
    "tokens.jsonl": (
        *("", "[1, 2]\n\n[1]\n", "[1.0, 2]\n", "[true]\n", '{"text": "x"}\n', "[1, 2]\nnonsense\n"),
        *(f"[{10**30}]\n", "[1, 2, 3, 264]\n", "[1, -2, 3, 4]\n", "[1, 2]\n"),
    ),
    "text.txt": ("", " \n\t\n"),
}
BAD_ARRAYS: list[Any] = [
    [[1, 264, 300, 3]], [[1, 2, -1, 3]], [[1.0, 2.0, 3.0, 4.0]], [["a", "b"]], [[[1, 1], [2, 2]]],
    np.ones((0, 4), np.int64), [[1, 1, 1]], 3,
]  # fmt: skip
BAD_INDICES: list[dict[str, Any]] = [
    {"x": "../model/model.safetensors"}, {"x": "/etc/passwd"}, {"x": "."}, {"x": 3},
    {"x": "model-00009.safetensors"}, {"x": "model-00001-of-00004.safetensors"},
]  # fmt: skip
LINEARS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
GOOD_TEXTS = {
    "blocks.json": "[0.6, 0.65, 0.75, 0.8]", "blocks.csv": "0.8\n0.75\n0.65\n0.6\n",
    "rows.jsonl": "[1, 2, 3, 4, 5, 6]\n[9, 8, 7, 6, 5, 4]\n",
    "small.jsonl": "[1, 5, 7]\n[2, 4, 6]\n",
    "questions.jsonl": """{"question": "A stone", "choices": ["into the third", "no"], "answer": 0}
{"question": "A river", "choices": ["runs", "sings", "x"], "answer": 1}
{"question": "", "choices": ["to", "be"], "answer": 1}""",
}  # fmt: skip
TINY = "--samples 1 --seq-len 4"
SHORT = {
    "{m}": "bad/model", "{s}": "made/score/llama-sweep/scores.json", "{d}": "bad/scores",
    "{p}": "made/score/llama-pruning/scores.json",
}  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj.weight"
BAD_TENSORS: dict[str, Any] = {
    "nan": {DOWN: np.full((32, 44), np.nan, np.float32)},
    "inf": {"lm_head.weight": np.full((264, 32), np.inf, np.float32)},
    "missing": {DOWN: None}, "extra": {"model.layers.1.extra": np.ones(3, np.float32)},
    "shape": {DOWN: np.ones((44, 32), np.float32)}, "integers": {DOWN: np.ones((32, 44), np.int64)},
    "huge": {DOWN: np.full((32, 44), 1e300)}, "quantised": {DOWN: np.ones((32, 44), np.int8)},
    "overflow": {DOWN: np.full((32, 44), 1e38, np.float32)},
    "several": {DOWN: None, "b": np.ones(3), "lm_head.weight": np.ones(3, np.float32)},
    "multimodal": {"vision_tower.patch.weight": np.ones((3, 3), np.float32)},
}  # fmt: skip
BAD_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[:-100], "cut-header": lambda raw: raw[:60], "empty": lambda raw: b"",
    "garbage": lambda raw: b"garbage" * 99, "long": lambda raw: raw + b"more",
    "huge-header": lambda raw: b"\xff" * 16, "no-json": lambda raw: struct.pack("<Q", 4) + b"nope",
}  # fmt: skip
REPORTED = {
    "sweep": "score/llama-sweep/scores.json", "pruning": "prune/llama-00/model/pruning.json",
    "alphapruning": "score/llama-alphapruning/scores.json", "eval": "eval/text/evaluation.json",
    "divergence": "score/llama-pruning-divergence/scores.json",
}  # fmt: skip
OUTPUTS = {
    "prune": "model", "eval": "evaluation.json", "score": "scores.json", "export": "model.onnx",
    "case": "case", "report": "page.html",
}  # fmt: skip
HELP = "score allocate prune inspect eval export validate check report explain case case-make"
# Runs in a child process with the public names only; prints one JSON object.
LIBRARY = """
import hashlib, inspect, json, sys
from pathlib import Path
import numpy as np
import refimpl

def digest(x):
    raw = np.ascontiguousarray(x).tobytes()
    return [str(x.dtype), list(x.shape), hashlib.sha256(raw).hexdigest()]

def parameters(x):
    try:
        found = inspect.signature(x).parameters.values()
    except (TypeError, ValueError):
        return None
    plain = (bool, int, float, str, type(None), tuple)
    return [[p.name, p.kind.name, repr(p.default) if isinstance(p.default, plain) else
        p.default is p.empty] for p in found]

assert Path(refimpl.__file__).resolve().is_relative_to(Path(sys.argv[1]).resolve()), refimpl
found = {"library/names": {name: parameters(getattr(refimpl, name)) for name in refimpl.__all__}}
for path in sorted(Path("fixtures").glob("*/config.json")):
    model, config = refimpl.read_model(path.parent), json.loads(path.read_text())
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (2, 11))
    for dtype in ("float32", "float64"):
        out = refimpl.forward(model, ids, trace=True, dtype=np.dtype(dtype))
        points = {name: digest(value) for name, value in out.trace.items()}
        found[f"forward/{path.parent.name}-{dtype}"] = {
            "logits": digest(out.logits), "order": list(out.trace), "points": points}
print(json.dumps(found))
"""


def normal(value: Any, prose: bool = False) -> Any:
    """Remove what is measured from a JSON value, and mark prose unless asked for."""
    if isinstance(value, list):
        return [normal(item, prose) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "<text>" if key in PROSE and item and not prose else normal(item, prose)
        for key, item in value.items()
        if key not in MEASURED | VERSIONS and (key not in SCALARS or isinstance(item, dict))
    }


def tensors(raw: bytes) -> dict[str, Any]:
    """Describe a safetensors file: metadata, and the dtype, shape and digest of each tensor."""
    (length,) = struct.unpack("<Q", raw[:8])
    head, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    for facts in (facts for name, facts in head.items() if name != "__metadata__"):
        begin, end = facts.pop("data_offsets")
        facts["sha256"] = hashlib.sha256(data[begin:end]).hexdigest()
    return head


def digest(path: Path) -> Any:
    """Describe a file that the program wrote."""
    raw = path.read_bytes()
    whole = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    match path.suffix:
        case ".json":
            return normal(json.loads(raw))
        case ".safetensors":
            return whole | {"tensors": tensors(raw)}
        case ".xml":
            root = ElementTree.fromstring(raw)
            cases = [[x.get("name"), [child.tag for child in x]] for x in root]
            return {"counts": {k: v for k, v in root.items() if k != "name"}, "cases": cases}
        case ".html":
            body = re.sub(r"(?s)<(style|script)\b.*?</\1>", "", raw.decode())
            return {"numbers": re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", body)}
    return whole


@dataclass(frozen=True)
class Recorder:
    """Runs the program of one checkout in a folder of its own, and writes what came of it."""

    tree: Path
    work: Path
    out: Path

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the checkout in place of any other refimpl."""
        fixed = {"OPENBLAS_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
        command, env = [sys.executable, *words], os.environ | fixed | {"PYTHONPATH": str(self.tree)}
        return subprocess.run(
            command, cwd=self.work, env=env, capture_output=True, text=True, timeout=300
        )

    def write(self, name: str, found: Any, text: str = "") -> None:
        """Write one recording, and its text beside it."""
        for folder, suffix, content in (
            ("outputs", ".json", json.dumps(found, indent=1) + "\n"),
            ("texts", ".txt", text),
        ):
            path = self.out / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def record(self, name: str, command: str) -> None:
        """Run a command, then again with --json, and write its exit code, files and JSON."""
        made = self.work / "made" / name
        made.mkdir(parents=True, exist_ok=True)
        words = ["-m", "refimpl", *command.replace("{out}", f"made/{name}").split()]
        done = self.python(*words)
        shown = (done.stdout + done.stderr).replace(f"{self.work}/", "")
        text = f"{command}\n{TIMES.sub('#', shown)}"
        found: dict[str, Any] = {"code": done.returncode}
        if name.startswith("bad/"):
            found["lines"] = [len(done.stdout.splitlines()), len(done.stderr.splitlines())]
            found["labels"] = re.findall(r"^(error|expected|next|warning): ", done.stderr, re.M)
        elif "--help" in words:
            found["options"] = sorted(set(re.findall(r"--[a-z][\w-]+", done.stdout)))
        elif words[2] not in ("case", "report"):
            again = ["--json", *["--force"] * (words[2] in ("prune", "export"))]
            printed = self.python(*words, *again)
            found["json_code"] = printed.returncode
            document = json.loads(printed.stdout or "null")
            found["json"] = normal(document)
            text += json.dumps(normal(document, prose=True), indent=1) + printed.stderr
        files = [path for path in sorted(made.rglob("*")) if path.is_file()]
        found["files"] = {str(path.relative_to(made)): digest(path) for path in files}
        for path in files:
            text += path.read_text() if path.suffix in (".xml", ".html") else ""
            if found.get("json") == found["files"][str(path.relative_to(made))]:
                found["json"] = f"as {path.relative_to(made)}"
        self.write(name, found, text)

    def all(self, commands: dict[str, str]) -> None:
        """Record commands, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: self.record(*item), commands.items()))


def commands(table: list[str]) -> dict[str, str]:
    """Name each command of a table of `name: command`."""
    return dict(entry.split(": ", 1) for entry in table)


def with_output(command: str) -> str:
    """Add an output in the folder of the case, unless one is named or the command ends in a dot."""
    if re.search(r" -o( |$)|--help|--estimate| \.$", command):
        return command.removesuffix(" .")
    return f"{command} -o {{out}}/{OUTPUTS.get(command.split()[0], 'new.json')}"


def plans(fixtures: list[str], cases: list[str]) -> Iterator[dict[str, str]]:
    """Give the commands to record, in groups of which each needs the outputs of those before."""
    plan = {f"score/{name}": f"score fixtures/{name} {SMALL}" for name in fixtures}
    for name, options in commands(SCORE_OPTIONS).items():
        plan[f"score/llama-{name}"] = f"score fixtures/llama {SMALL} {options}"
    plan |= {f"help/{name}": f"{name} --help".replace("-make", " make") for name in HELP.split()}
    yield plan | {"help/refimpl": "--help"}
    plan = {}
    for i, entry in enumerate(ALLOCATE_OPTIONS):
        name, options = entry.split(" ", 1)
        plan[f"allocate/{i:02}-{name}"] = f"allocate made/score/llama-{name}/scores.json {options}"
    for family in PRUNE_FAMILIES:
        for i, options in enumerate(PRUNE_OPTIONS + PRUNE_LLAMA * (family == "llama")):
            free = re.search("magnitude|random", options) and re.search("nm|none|all", options)
            given = f"{'' if free else SMALL} {options}"
            plan[f"prune/{family}-{i:02}"] = f"prune fixtures/{family} {given}"
    for name in fixtures:
        plan[f"validate/{name}"] = f"validate fixtures/{name} --threads 1 --device cpu"
        plan[f"explain/{name}"] = f"explain fixtures/{name} --samples 1 --seq-len 8"
        plan[f"export/{name}"] = f"export fixtures/{name}"
    for name in cases:
        case = f"fixtures/cases/{name}"
        plan[f"check/{name}"] = (
            f"check {case} {case}/expected.safetensors --junit-xml {{out}}/junit.xml"
        )
    yield plan
    pruned = [name for name in plan if name.startswith("prune/")]
    plan = commands(OTHERS) | {f"inspect/{name}": f"inspect fixtures/{name}" for name in fixtures}
    yield plan | {f"inspect/{name}": f"inspect made/{name}/model" for name in pruned}
    yield commands(LAST)


def bad_plan(work: Path) -> dict[str, str]:
    """Give the commands with bad input."""
    models = sorted(path.parent.name for path in work.glob("bad/*/config.json"))
    table = [f"score bad/{name} {TINY}" for name in models if name != "model"]
    table += [f"score {{m}} {TINY} {options}" for options in BAD_OPTIONS]
    for option in ("base", "tokens", "text"):
        for path in sorted(work.glob(f"bad/{option}-*")):
            table.append(f"score {{m}} {TINY} --{option} bad/{path.name}")
    plan = {}
    for i, command in enumerate(table + BAD_COMMANDS):
        words = re.sub("[^a-z0-9]+", "-", command.replace(TINY, "").lower()).strip("-")
        for short, long in SHORT.items():
            command = command.replace(short, long)
        plan[f"bad/{i:03}-{words[:60]}"] = with_output(command)
    return plan


def prepare(work: Path) -> None:
    """Write the good and bad inputs that the commands read."""
    good, bad, llama = work / "good", work / "bad", work / "fixtures/llama"
    good.mkdir()
    units = {f"blocks.{i}.{x}": 0.6 + 0.05 * i for i in range(4) for x in LINEARS.split()}
    for name, text in {**GOOD_TEXTS, "linears.json": json.dumps(units)}.items():
        (good / name).write_text(text)
    np.save(good / "ids.npy", np.arange(200) * 7 % 250)
    for model, name in (("phi3", "reference"), ("llama_sharded", "reference-sharded")):
        shutil.copytree(work / "fixtures" / model, work / "made/export" / name)
    expected = {
        x: load_file(work / f"fixtures/cases/{x}/expected.safetensors") for x in ("llama", "opt")
    }
    llama_case, changed = expected["llama"], "blocks.1.mlp_out"
    save_file(llama_case | {changed: llama_case[changed] * 1.001}, good / "changed.safetensors")
    counts = {"owl.counts": expected["opt"]["owl.counts"] + 1}
    save_file(expected["opt"] | counts, good / "counts.safetensors")
    save_file({x: llama_case[x] for x in list(llama_case)[:30]}, good / "part.safetensors")
    floats = {
        x: v.astype(np.float32) if v.dtype == np.float64 else v for x, v in llama_case.items()
    }
    save_file(floats, good / "float32.safetensors")

    def copy(name: str) -> Path:
        """Copy the model to change it."""
        hidden = shutil.ignore_patterns("expected*", "prov*")
        return Path(shutil.copytree(llama, bad / name, ignore=hidden))

    raw, weights = (
        (llama / "model.safetensors").read_bytes(),
        load_file(llama / "model.safetensors"),
    )
    copy("model")
    for name, change in BAD_BYTES.items():
        (copy(name) / "model.safetensors").write_bytes(change(raw))
    for name, changes in BAD_TENSORS.items():
        kept = {x: v for x, v in (weights | changes).items() if v is not None}
        save_file(kept, copy(name) / "model.safetensors")
    config = json.loads((llama / "config.json").read_text())
    texts = [json.dumps(config | change) for change in BAD_CONFIGS] + list(BAD_TEXTS["config"])
    for i, text in enumerate(texts):
        (copy(f"config-{i}") / "config.json").write_text(text)
    for i, change in enumerate(BAD_INDICES):
        folder = Path(shutil.copytree(work / "fixtures/llama_sharded", bad / f"index-{i}"))
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"] |= change
        path.write_text(json.dumps(index))
    for name in ("pytorch_model.bin", "model.gguf", "adapter_model.safetensors"):
        (copy(f"only-{name}") / "model.safetensors").rename(bad / f"only-{name}" / name)
    for name in list(BAD_TEXTS)[1:]:
        for i, text in enumerate(BAD_TEXTS[name]):
            (bad / name.replace(".", f"-{i}.")).write_text(text)
    for i, ids in enumerate(BAD_ARRAYS):
        np.save(bad / f"tokens-{i}.npy", ids)
    (bad / "tokens-cut.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    (bad / "text-bytes.txt").write_bytes(b"caf\xe9")
    (bad / "long.jsonl").write_text(
        '{"question": " ", "choices": ["%s", "b"], "answer": 0}' % ("a" * 99)
    )
    case = Path(shutil.copytree(work / "fixtures/cases/llama", bad / "case")) / "case.json"
    case.write_text(
        case.read_text().replace('"spec": 1', '"spec": 2').replace("../../", "../../fixtures/")
    )


def prepare_from_scores(work: Path) -> None:
    """Damage a file of scores in several ways."""
    whole = frozen(work, "score/llama-sweep/scores.json")
    blocks = whole["blocks"]
    changes = {"format": {"format": 7}, "blocks": {"blocks": blocks[:-1]}, "run": {"run": 3}}
    for name, change in changes.items():
        (work / f"bad/scores-{name}.json").write_text(json.dumps(whole | change))
    (work / "bad/scores-cut.json").write_text(json.dumps(whole)[:-40])
    blocks[1]["linears"][2]["num_pruned"] += 1
    (work / "bad/scores-count.json").write_text(json.dumps(whole))


def frozen(work: Path, source: str) -> Any:
    """Read a JSON file that the program wrote, with what was measured set to 1."""
    whole = json.loads((work / "made" / source).read_text())
    run = whole.get("run", {})
    run |= {key: 1 for key in run if key in MEASURED | SCALARS}
    return whole


def record(tree: Path, out: Path) -> None:
    """Record every output of a checkout."""
    begun, names = time.monotonic(), ("outputs", "texts")
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(tree / "fixtures", work / "fixtures", ignore=shutil.ignore_patterns("*.py"))
        recorder = Recorder(tree, work, out)
        library = recorder.python("-c", LIBRARY, str(tree))
        assert library.returncode == 0, library.stderr
        for name, found in json.loads(library.stdout).items():
            recorder.write(name, found)
        prepare(work)
        fixtures = sorted(path.parent.name for path in work.glob("fixtures/*/config.json"))
        cases = sorted(path.parent.name for path in work.glob("fixtures/cases/*/case.json"))
        for i, plan in enumerate(plans(fixtures, cases)):
            if i == 1:
                prepare_from_scores(work)
            if i == 3:
                recorder.all(bad_plan(work))
                (work / "frozen").mkdir()
                for name, source in REPORTED.items():
                    (work / f"frozen/{name}.json").write_text(json.dumps(frozen(work, source)))
            recorder.all({name: with_output(command) for name, command in plan.items()})
        left = {
            str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
            for place in ("fixtures", "good", "bad")
            for path in sorted((work / place).rglob("*"))
            if path.is_file()
        }
        recorder.write("inputs", left)
    count = sum(path.is_file() for path in (out / "outputs").rglob("*"))
    print(f"{count} outputs in {time.monotonic() - begun:.0f} s")


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Yield the places where two JSON values differ; floats must be equal bit for bit."""
    if type(a) is type(b) and isinstance(a, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key in a and key in b:
                yield from differences(a[key], b[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}: only in {'A' if key in a else 'B'}"
    elif type(a) is type(b) and isinstance(a, list) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{place}[{i}]")
    elif repr(a) != repr(b):
        yield f"{place}: {str(repr(a))[:200]} != {str(repr(b))[:200]}"


def compare(a: Path, b: Path, texts: bool) -> int:
    """Print every difference of two recordings, and return the exit code."""
    count, different = 0, 0
    for folder in ("outputs", "texts")[: 1 + texts]:
        found = [
            {str(path.relative_to(x)) for path in (x / folder).rglob("*") if path.is_file()}
            for x in (a, b)
        ]
        count += len(found[0] | found[1])
        for name in sorted(found[0] | found[1]):
            if name not in found[0] & found[1]:
                lines = [f": only in {'A' if name in found[0] else 'B'}"]
            elif folder == "outputs":
                lines = list(differences(*(json.loads((x / name).read_text()) for x in (a, b))))
            else:
                pair = [(x / name).read_text().splitlines() for x in (a, b)]
                lines = [f": {line}" for line in difflib.unified_diff(*pair, lineterm="", n=0)]
            different += bool(lines)
            print(*(f"{name}{line}" for line in lines), sep="\n", end="\n" if lines else "")
    print(f"{count} outputs, {f'{different} differ' if different else 'no difference'}")
    return min(different, 1)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("record", help="record every output of a checkout")
    one.add_argument("tree", type=Path, help="folder that holds refimpl/ and fixtures/")
    one.add_argument("out", type=Path, help="folder for the recording")
    two = actions.add_parser("compare", help="exit with 1 if two recordings differ")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    two.add_argument("--texts", action="store_true", help="compare tables and messages, too")
    given = parser.parse_args()
    if given.action == "compare":
        return compare(given.a, given.b, given.texts)
    record(given.tree.resolve(), given.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
