#!/usr/bin/env bash
# What made each folder beside this file; run it in the repository's top folder, with the models in real/.
# With the files that are there, every command prints its table and runs nothing; for new rows, name another folder.
# All rows but those in context and of ADMM (fad8ab98): refimpl 81e27362, numpy 2.4.6, one core of an AMD EPYC beside other programs.
# The first 79 cells of smollm2 took 69 minutes, those of gemma 114, the first 31 of qwen 85.
set -euo pipefail
export OPENBLAS_CORETYPE=Haswell
published="--bases uniform,owl,alphapruning,dlp,lsa,absorption,divergence,atp --base-option beta=0.0055"
few="--bases uniform,owl,divergence,atp --base-option beta=0.0055"

bench() { # folder, model, options: those that come last count
  refimpl bench "real/$2" --sparsity 0.5,0.6,0.7 --pruner wanda \
    --seeds 3 --jitter 2 --text real/text/sotu-1901-1979.txt --samples 4 --seq-len 256 --window 512 --windows 8 \
    --measure-on real/text/sotu-1980-on.txt --measure-on real/text/austen-persuasion.txt -o "docs/study/$1" "${@:3}"
}

bench smollm2 SmolLM2-135M-Instruct $published # 85 cells
bench gemma gemma-3-270m $published # 85 cells
bench qwen Qwen2.5-Coder-0.5B-Instruct $published --seeds 1 # 33 cells
for model in "smollm2 SmolLM2-135M-Instruct" "gemma gemma-3-270m" "qwen Qwen2.5-Coder-0.5B-Instruct --seeds 1"; do
  bench $model --sparsity 0.5 --bases uniform,lsa --base-option beta=0.04 # the steps of LSA's code
  bench $model --sparsity 0.6 --bases uniform,lsa --base-option beta=0.1
done

gpt="--seeds 1 --pruner sparsegpt --samples 8 --seq-len 512"
bench sparsegpt-smollm2 SmolLM2-135M-Instruct $gpt $few # 28 cells
bench sparsegpt-smollm2 SmolLM2-135M-Instruct $gpt --bases uniform,alphapruning,dlp
bench sparsegpt-smollm2 SmolLM2-135M-Instruct $gpt --sparsity 0.5 --bases uniform,lsa --base-option beta=0.04
bench sparsegpt-smollm2 SmolLM2-135M-Instruct $gpt --sparsity 0.6 --bases uniform,lsa --base-option beta=0.1
bench sparsegpt-smollm2 SmolLM2-135M-Instruct $gpt --sparsity 0.7 --bases uniform,lsa
bench sparsegpt-gemma gemma-3-270m $gpt $few --sparsity 0.6,0.7 # 13 cells
bench sparsegpt-qwen Qwen2.5-Coder-0.5B-Instruct $gpt --sparsity 0.5 --bases uniform,owl # 5 cells
gpt="--seeds 1 --pruner sparsegpt"
bench sparsegpt-4x256-smollm2 SmolLM2-135M-Instruct $gpt $few # 19 cells
bench sparsegpt-4x256-qwen Qwen2.5-Coder-0.5B-Instruct $gpt $few --sparsity 0.6 # 7 cells
bench magnitude SmolLM2-135M-Instruct --seeds 1 --pruner magnitude $few # 19 cells
bench float64 SmolLM2-135M-Instruct --seeds 1 --sparsity 0.6 --bases uniform --dtype float64 # 4 cells
bench admm-smollm2 SmolLM2-135M-Instruct $gpt --pruner admm --sparsity 0.6 --bases uniform,atp --base-option beta=0.0055 --jitter 0 --samples 8 --seq-len 512 # 3 cells
# Wanda's probes for other pruners: ADMM on SmolLM2 of refimpl 2b7f1512, the others by the library (refimpl.recommended) of fad8ab98.
# --allocation uniform gives the first column, --sparsity 0.6 in place of the file the second (fad8ab98).
# refimpl score real/SmolLM2-135M-Instruct --sparsity 0.6 --text real/text/sotu-1901-1979.txt -o scores.json
# refimpl prune real/SmolLM2-135M-Instruct -o pruned --allocation scores.json --pruner admm --text real/text/sotu-1901-1979.txt
# refimpl eval pruned --text real/text/sotu-1980-on.txt --window 512 --windows 8
# The allocation context was removed. Of refimpl ac26d6ee, 055e7fbb and fad8ab98; SmolLM2 with uniform of the first seed:
# bench context-smollm2 SmolLM2-135M-Instruct --sparsity 0.6 --bases context,divergence --jitter 0 --seq-len 128 --windows 4 # 8 cells
# bench context-gemma gemma-3-270m --sparsity 0.6 --bases divergence,context,atp --base-option beta=0.0055 --jitter 0 --seq-len 128 --windows 2 # 10 cells
# bench context-qwen Qwen2.5-Coder-0.5B-Instruct --sparsity 0.6 --bases divergence,context --jitter 0 --seq-len 128 --windows 2 # 7 cells
python docs/study/curves.py real/text/sotu-1901-1979.txt real/SmolLM2-135M-Instruct real/gemma-3-270m # cost curves
export OPENBLAS_CORETYPE=Prescott # another kernel of BLAS
bench prescott SmolLM2-135M-Instruct --sparsity 0.6 --bases uniform --jitter 0 # 4 cells
gpt="--seeds 1 --pruner sparsegpt --samples 8 --seq-len 512"
bench prescott-sparsegpt SmolLM2-135M-Instruct $gpt --sparsity 0.6 --bases uniform --jitter 0 # 2 cells
