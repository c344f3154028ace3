#!/usr/bin/env bash
# What made each folder beside this file; run it in the repository's top folder, with the models in real/.
# With the files that are there, every command prints its table and runs nothing; for new rows, name another folder.
# All rows but those of later: refimpl 81e27362, numpy 2.4.6, one core of an AMD EPYC beside other programs.
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

# Of refimpl 2e6e3de5 (uniform and ATP with ADMM: e5dcef3c; admm-qwen: 82691478, at 50 % d1739f88; admm-refit-smollm2 and
# seconds.csv: d1739f88): 2 to 4 minutes of processor time for a cell, 7 of large-qwen and with a refit, 20 of admm-qwen.
later() { # folder, model, options; Wanda probes on 4 x 128 tokens, and a pruner has 8 x 512
  refimpl bench "real/$2" --text real/text/sotu-1901-1979.txt --window 512 --measure-on real/text/sotu-1980-on.txt \
    --measure-on real/text/austen-persuasion.txt -o "docs/study/$1" "${@:3}"
}

line="--pruner admm --windows 8 --bases uniform,divergence,atp --base-option beta=0.0055"
later admm-smollm2 SmolLM2-135M-Instruct $line # 10 cells
later admm-gemma gemma-3-270m $line # 10 cells
later admm-qwen Qwen2.5-Coder-0.5B-Instruct $line --sparsity 0.6,0.5 # 7 cells
later admm-refit-smollm2 SmolLM2-135M-Instruct $line --sparsity 0.6 --pruner admm+refit # 4 cells
later large-qwen Qwen2.5-Coder-1.5B-Instruct --sparsity 0.5,0.6 --windows 4 # 5 cells
for pruner in wanda sparsegpt admm; do # seconds.csv: user time of prune, whose models eval measures
  for allocation in "--allocation uniform" ""; do
    time OPENBLAS_NUM_THREADS=1 refimpl prune real/SmolLM2-135M-Instruct --sparsity 0.6 --pruner $pruner $allocation \
      --threads 1 --text real/text/sotu-1901-1979.txt -o pruned --force
    for text in sotu-1980-on austen-persuasion; do
      refimpl eval pruned --text real/text/$text.txt --window 512 --windows 8
    done
  done
done
# Probes of another pruner, at 60 %: score MODEL --sparsity 0.6 [--pruner admm] --text real/text/sotu-1901-1979.txt -o FILE, then
# prune MODEL --allocation FILE --pruner sparsegpt|admm, and eval as above (refimpl fad8ab98; ADMM's own probes: 2e6e3de5).
python docs/study/curves.py real/text/sotu-1901-1979.txt real/SmolLM2-135M-Instruct real/gemma-3-270m # cost curves
export OPENBLAS_CORETYPE=Prescott # another kernel of BLAS
bench prescott SmolLM2-135M-Instruct --sparsity 0.6 --bases uniform --jitter 0 # 4 cells
gpt="--seeds 1 --pruner sparsegpt --samples 8 --seq-len 512"
bench prescott-sparsegpt SmolLM2-135M-Instruct $gpt --sparsity 0.6 --bases uniform --jitter 0 # 2 cells
