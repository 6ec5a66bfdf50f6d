#!/usr/bin/env bash
# Every question that only a GPU answers, on a machine without network.
#
#   bash benchmarks/gpu_wheels.sh wheels 3.12     # beforehand, where there is a network
#   bash benchmarks/gpu.sh wheels mnist.npz out [cifar10.npz]
#   PARTS="doctor mnist" bash benchmarks/gpu.sh ...     # only some, in several calls
#
# It needs Python with JAX for CUDA, NumPy and SciPy, for a comparison PyTorch; gpuzoo and
# what else it needs come from the folder of wheels and are installed without
# dependencies. The npz files hold x_train, y_train, x_test, y_test. Records are written
# into out/ after each part, so that a run that is cut off still counts; a part that
# fails is told and does not stop the others. DEVICE=cpu tries the script itself where
# there is no GPU.
set -uo pipefail
wheels=$(realpath "$1") mnist=$(realpath "$2") cifar=${4:+$(realpath "$4")}
mkdir -p "$3" && out=$(realpath "$3")
device=${DEVICE:-gpu}
cd "$(dirname "$0")/.."
export KERAS_BACKEND=jax PYTHONHASHSEED=0 GPUZOO_CACHE="$out/cache"
# Several of these processes live at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

python="$out/venv/bin/python"
if [ ! -x "$python" ]; then
    python3 -m venv --system-site-packages "$out/venv"
    "$out/venv/bin/pip" install -q --no-index --no-deps "$wheels"/*.whl || exit 1
fi
# Away from the tree, whose folder `gpuzoo` would stand in for the package.
mkdir -p "$out/tree" && cp -a benchmarks "$out/tree/" && cd "$out/tree" || exit 1
command -v nvidia-smi > /dev/null && nvidia-smi > "$out/nvidia-smi.txt"

part() {  # part NAME SECONDS COMMAND...: one part, its output, its seconds, its verdict
    local name=$1 limit=$2 begun=$SECONDS verdict=ok
    shift 2
    [[ -z "${PARTS:-}" || " $PARTS " == *" $name "* ]] || return
    [ "$device" = cpu ] && limit=$((5 * limit))
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || verdict="exit code $?"
    echo "$name: $verdict, $((SECONDS - begun)) s" | tee -a "$out/parts.txt"
    find benchmarks/records -name '*.json' -newer "$out/venv/pyvenv.cfg" \
        -exec cp -f {} "$out/" \;
}

train() { "$python" -m gpuzoo train mnist --data "$mnist" --device "$device" --quiet "$@"; }
twice() {  # the same bits in two fresh processes, verified; a kill in a third
    local run="$out/run-$1"
    rm -rf "$run" "$run-killed"
    train --precision "$1" --epochs 3 --out "$run" &&
        "$python" -m gpuzoo verify "$run" &&
        { timeout -s KILL 15 "$python" -m gpuzoo train mnist --data "$mnist" \
            --device "$device" --precision "$1" --epochs 200 --checkpoint-every 100 \
            --quiet --out "$run-killed" || true; } &&
        "$python" -m gpuzoo resume "$run-killed" --quiet &&
        "$python" -m gpuzoo verify "$run-killed"
}
models() {  # the matrix, its precisions side by side, each in a record of its own
    local failed=0 one
    for one in float32 mixed_bfloat16 mixed_float16; do
        "$python" benchmarks/repeatable.py --device "$device" --backends jax \
            --precisions "$one" --no-control --out "$out/repeatable-$one.json" &
    done
    for one in $(jobs -p); do wait "$one" || failed=1; done
    return "$failed"
}
figures() {  # figures RECIPE SEEDS DATA [OPTIONS]: a record of the recipe on this device
    local recipe=$1 seeds=$2 data=$3
    shift 3
    "$python" benchmarks/recipe_figures.py --recipe "$recipe" --seeds "$seeds" \
        --record "${recipe}_$device" -- --data "$data" --device "$device" "$@"
}

export -f train twice models figures
export python mnist cifar device out
part doctor 120 "$python" -m gpuzoo doctor
for precision in float32 mixed_bfloat16 mixed_float16; do
    part "twice-$precision" 90 bash -c "twice $precision"
done
part mnist 120 bash -c 'figures mnist 5 "$mnist"'
part lstm 90 bash -c 'figures mnist_lstm 2 "$mnist"'
part gan 120 bash -c 'figures mnist_gan 2 "$mnist"'
[ -n "$cifar" ] && part cifar 180 bash -c 'figures cifar10 3 "$cifar" --epochs 8'
[ -n "$cifar" ] && part cifar-torch 240 "$python" benchmarks/cifar_beside_torch.py \
    --data "$cifar" --torch "$python" --device "$device"
part price 240 "$python" benchmarks/price.py --data "$mnist" --device "$device" \
    --autotune "$out/choices.txt" --generations 2 --turns 8
part bench 240 "$python" -m gpuzoo bench mnist --data "$mnist" --device "$device" \
    --backends jax --goal 0.99 --seeds 5 --out "$out/bench"
part models 580 bash -c models
echo && cat "$out/parts.txt"
