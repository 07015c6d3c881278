#!/bin/sh
# Python's own library -> tokenizer and shards -> ternary model -> text from JAX -> 2-bit artifact -> the same text from MLX.
# Three minutes on two cores. Options go to the trainer: examples/first_model.sh --num_train_steps 300
set -eu

BIN=${BIN:-.venv/bin}
DATA=${DATA:-data/stdlib}
RUN=${RUN:-runs/first}
INPUT=${INPUT:-stdlib}
VOCABULARY=${VOCABULARY:-4096}

"$BIN/python" -m jaxlm prepare --input "$INPUT" --vocab_size "$VOCABULARY" --output_dir "$DATA"
"$BIN/python" -m jaxlm train --config scripts/tiny.yaml --data_dir "$DATA" --output_dir "$RUN" "$@"
"$BIN/python" -m jaxlm generate --model "$RUN" --prompt "def get" --max_tokens 32 --temperature 0
"$BIN/python" -m mlxlm generate --model "$RUN/artifact" --prompt "def get" --max_tokens 32 --temperature 0
