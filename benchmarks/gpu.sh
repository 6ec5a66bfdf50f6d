#!/usr/bin/env bash
# Every question that only a GPU answers, on a machine without network, in 8 minutes.
#
#   pip wheel . --no-deps -w wheels && pip download ... -d wheels     # beforehand
#   bash benchmarks/gpu.sh wheels mnist.npz out
#
# It needs Python with JAX for CUDA and NumPy; gpuzoo and what else it needs come from
# the folder of wheels and are installed without dependencies. mnist.npz holds x_train,
# y_train, x_test, y_test. Records are written into out/ after each part, so that a run
# that is cut off still counts; a part that fails is told and does not stop the others.
# DEVICE=cpu tries the script itself where there is no GPU.
set -uo pipefail
wheels=$(realpath "$1") mnist=$(realpath "$2")
mkdir -p "$3" && out=$(realpath "$3")
device=${DEVICE:-gpu}
cd "$(dirname "$0")/.."
export KERAS_BACKEND=jax PYTHONHASHSEED=0 GPUZOO_CACHE="$out/cache"

python3 -m venv --system-site-packages "$out/venv"
"$out/venv/bin/pip" install -q --no-index --no-deps "$wheels"/*.whl || exit 1
python="$out/venv/bin/python"
command -v nvidia-smi > /dev/null && nvidia-smi > "$out/nvidia-smi.txt"

part() {  # part NAME SECONDS COMMAND...: one part, its output, its seconds, its verdict
    local name=$1 limit=$2 begun=$SECONDS verdict=ok
    shift 2
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || verdict="exit code $?"
    echo "$name: $verdict, $((SECONDS - begun)) s" | tee -a "$out/parts.txt"
    cp -f benchmarks/records/*.json "$out/" 2> /dev/null
}

train() { "$python" -m gpuzoo train mnist --data "$mnist" --device "$device" --quiet "$@"; }
twice() {  # the same bits in two fresh processes, verified; a kill in a third
    local run="$out/run-$1"
    train --precision "$1" --epochs 3 --out "$run" &&
        "$python" -m gpuzoo verify "$run" &&
        { timeout -s KILL 15 "$python" -m gpuzoo train mnist --data "$mnist" \
            --device "$device" --precision "$1" --epochs 200 --checkpoint-every 100 \
            --quiet --out "$run-killed" || true; } &&
        "$python" -m gpuzoo resume "$run-killed" --quiet &&
        "$python" -m gpuzoo verify "$run-killed"
}

export -f train twice
export python mnist device out
part doctor 120 "$python" -m gpuzoo doctor
part models 180 "$python" benchmarks/repeatable.py --device "$device" --backends jax
for precision in float32 mixed_bfloat16 mixed_float16; do
    part "twice-$precision" 90 bash -c "twice $precision"
done
part mnist 90 "$python" benchmarks/recipe_figures.py --recipe mnist --seeds 5 \
    --record "mnist_$device" -- --data "$mnist" --device "$device"
part lstm 60 "$python" benchmarks/recipe_figures.py --recipe mnist_lstm --seeds 1 \
    --record "mnist_lstm_$device" -- --data "$mnist" --device "$device" --epochs 2
part price 240 "$python" benchmarks/price.py --data "$mnist" --device "$device" \
    --autotune "$out/choices.txt" --generations 2 --turns 8
echo && cat "$out/parts.txt"
