#!/usr/bin/env bash
# Every question that only a GPU answers, on a machine without network.
#
#   bash benchmarks/gpu_wheels.sh wheels 3.12 [DIR]     # beforehand, with a network
#   bash benchmarks/gpu.sh wheels mnist.npz out [cifar10.npz]
#   PARTS="doctor mnist" bash benchmarks/gpu.sh ...     # only these, in any case
#
# It needs a `python3` with JAX for CUDA, NumPy and SciPy, for a comparison PyTorch, and
# uses TensorFlow where that is; gpuzoo and what else it needs come from the folder of
# wheels, without their dependencies, into out/site. The npz files hold x_train, y_train,
# x_test, y_test.
#
# The parts come by importance. Each has a share of the time, and what those before it
# have left over; after BUDGET seconds (480) nothing more is begun. The same command
# again goes on: with parts that were never begun, then with those that failed or were
# cut, which get as much time again; what is `ok` in out/parts.txt is left alone.
# Records are written into out/records after each run (of `price` and `bench` at their
# end), so that a part that is cut off still counts. Last comes a table of what has been
# measured. DEVICE=cpu tries the script itself where there is no GPU, with five times
# the shares.
set -uo pipefail
wheels=$(realpath "$1") mnist=$(realpath "$2") cifar=${4:+$(realpath "$4")}
mkdir -p "$3/records" && out=$(realpath "$3")
device=${DEVICE:-gpu} slower=1 due=0 begun=" "
[ "$device" = cpu ] && slower=5
budget=${BUDGET:-$((480 * slower))}
python=$(command -v python3) || exit 1
cd "$(dirname "$0")/.." || exit 1
export KERAS_BACKEND=jax PYTHONHASHSEED=0 GPUZOO_CACHE="$out/cache"
export PYTHONPATH="$out/site${PYTHONPATH:+:$PYTHONPATH}"
# Several of these processes live at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

if [ ! -e "$out/site/installed" ]; then  # the stamp is written last
    rm -rf "$out/site" && mkdir "$out/site"
    if "$python" -m pip --version > /dev/null 2>&1; then
        "$python" -m pip install -q --no-index --no-deps --target "$out/site" \
            "$wheels"/*.whl || exit 1
    else
        echo "This Python has no pip: the wheels are unpacked as they are."
        for wheel in "$wheels"/*.whl; do
            "$python" -m zipfile -e "$wheel" "$out/site" || exit 1
        done
    fi
    touch "$out/site/installed"
fi
# Away from the tree, whose folder `gpuzoo` would stand in for the package.
mkdir -p "$out/tree" && rm -rf "$out/tree/benchmarks" &&
    cp -a benchmarks "$out/tree/" && cd "$out/tree" || exit 1
rm -rf benchmarks/records && ln -s "$out/records" benchmarks/records || exit 1
touch "$out/parts.txt"
command -v nvidia-smi > /dev/null && nvidia-smi > "$out/nvidia-smi.txt"

backends=jax
"$python" -c 'import sys, tensorflow as tf
sys.exit(sys.argv[1] == "gpu" and not tf.config.list_physical_devices("GPU"))' \
    "$device" > /dev/null 2>&1 && backends="tensorflow jax"
echo "$device, $backends, $("$python" --version), $budget s"

part() {  # part NAME SECONDS COMMAND...: one part, its output, its seconds, its verdict
    local name=$1 share=$2 start=$SECONDS tries left verdict=ok
    shift 2
    [[ "$begun" == *" $name "* ]] && return
    tries=$(grep -c "^$name: " "$out/parts.txt")
    if [ -n "${PARTS:-}" ]; then
        [[ " $PARTS " == *" $name "* ]] || return
    elif [ "$turn" = first ]; then
        [ "$tries" -gt 0 ] && return
    else
        grep -q "^$name: ok" "$out/parts.txt" && return
    fi
    share=$((share * slower * (1 + tries)))
    left=$((budget - SECONDS))
    [ "$share" -gt $((budget * 7 / 8)) ] && share=$((budget * 7 / 8))
    if [ "$share" -gt "$left" ]; then
        [ "$turn" = first ] || echo "$name: for the next call, $left s are left"
        return
    fi
    begun+="$name "
    due=$(((due > SECONDS ? due : SECONDS) + share))
    [ $((due - SECONDS)) -lt "$left" ] && left=$((due - SECONDS))
    # gpuzoo takes the first signal for a wish to end nicely.
    timeout -k 10 "$left" "$@" > "$out/$name.txt" 2>&1 || verdict="exit code $?"
    echo "$name: $verdict, $((SECONDS - start)) s of $left" | tee -a "$out/parts.txt"
}

all() {  # wait for what runs side by side; 1 if any of it failed
    local failed=0 one
    for one in $(jobs -p); do wait "$one" || failed=1; done
    return "$failed"
}
examine() {  # what the doctor finds is no failure of the part
    "$python" -m gpuzoo doctor || [ $? = 1 ]
}
predictions() {  # of gpuzoo compile; on a CPU they do not hold, which is no failure
    "$python" benchmarks/repeatability/gpu_predictions.py --data "$mnist" \
        --device "$device" --recipes mnist mnist_lstm \
        --out "benchmarks/records/gpu_predictions_$device.json" ||
        { [ $? = 1 ] && [ "$device" = cpu ]; }
}
train() {
    "$python" -m gpuzoo train mnist --data "$mnist" --device "$device" --quiet "$@"
}
twice() {  # the same bits in two fresh processes, in every precision; and a difference
    local one
    rm -rf "$out"/run-*
    for one in float32 mixed_bfloat16 mixed_float16; do
        { train --precision "$one" --epochs 3 --out "$out/run-$one" &&
            "$python" -m gpuzoo verify "$out/run-$one"; } &
    done
    all && { "$python" -m gpuzoo diff "$out/run-float32" "$out/run-mixed_float16"
        [ $? = 1 ]; }
}
third() {  # third NUMBER: every third model of the catalogue
    "$python" -c 'import gpuzoo, sys
print(*gpuzoo.list_models()[int(sys.argv[1]) :: 3])' "$1"
}
matrix() {  # matrix NUMBER NAME OPTIONS...: some models twice, in a record NAME
    local number=$1 name=$2
    shift 2
    # shellcheck disable=SC2046,SC2086
    "$python" benchmarks/repeatability/repeatable.py --device "$device" --backends $backends \
        --models $(third "$number") --no-control --group 3 "$@" \
        --out "benchmarks/records/repeatable_${name}_$device.json"
}
models() {  # models NUMBER: the precisions side by side, each in a record of its own
    local one
    for one in float32 mixed_bfloat16 mixed_float16; do
        matrix "$1" "$one" --precisions "$one" &
    done
    all
}
flags() {  # flags NUMBER: without determinism, with kernels tuned once and pinned, and
    # without nondeterministic operations
    matrix "$1" fast --precisions mixed_bfloat16 --level fast &
    if [ "$device" = gpu ]; then
        matrix "$1" pinned --precisions mixed_bfloat16 --backends jax \
            --autotune "$out/choices-$1.txt" &
        # The other flag, and a cache of what was tuned for each fusion.
        mkdir -p "$out/fusions-$1"
        XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_exclude_nondeterministic_ops=true \
--xla_gpu_per_fusion_autotune_cache_dir=$out/fusions-$1" \
            matrix "$1" excluded --precisions mixed_bfloat16 --backends jax --level fast &
    fi
    all
}
figures() {  # figures RECIPE NAME SEEDS [OPTIONS]: a record NAME of the recipe
    local recipe=$1 name=$2 seeds=$3
    shift 3
    "$python" benchmarks/speed/recipe_figures.py --recipe "$recipe" --seeds "$seeds" --twice \
        --record "${name}_$device" -- --data "$mnist" --device "$device" "$@"
}
lstm() {  # three ways through time, in seconds and in bits; cuDNN needs a GPU
    local way failed=0
    for way in scan unrolled cudnn; do
        [ "$device" = cpu ] && [ "$way" = cudnn ] && continue
        figures mnist_lstm "mnist_lstm_$way" 1 --precision float32 \
            --model-options "implementation=$way" || failed=1
    done
    return "$failed"
}
price() {  # price GENERATIONS PRECISION...: what repeatability costs
    local generations=$1
    shift
    "$python" benchmarks/repeatability/price.py --data "$mnist" --device "$device" --precisions "$@" \
        --autotune "$out/choices.txt" --generations "$generations" --turns 8
}
bench() {  # a goal that is missed is no failure of the part
    "$python" -m gpuzoo bench mnist --data "$mnist" --device "$device" \
        --backends $backends --goal 0.99 --seeds 5 --out "$out/bench" || [ $? = 1 ]
    cp "$out"/bench/*.json "benchmarks/records/bench_mnist_$device.json"
}
parts() {
    local number
    part doctor 40 bash -c examine
    part predictions 60 bash -c predictions
    part twice 50 bash -c twice
    [ "$device" = gpu ] && part price 80 bash -c 'price 1 mixed_bfloat16'
    part mnist 70 "$python" benchmarks/speed/mnist_to_99.py --data "$mnist" --together \
        --device "$device" --seeds 20 --stock-seeds 0
    [ -n "$cifar" ] && part cifar 80 "$python" benchmarks/speed/cifar_beside_torch.py \
        --data "$cifar" --torch "$python" --device "$device"
    part lstm 60 bash -c lstm
    part gan 40 bash -c 'figures mnist_gan mnist_gan 1'
    # shellcheck disable=SC2086
    part kills 60 "$python" benchmarks/repeatability/chaos.py --kills 20 --at-once 7 \
        --device "$device" --backends $backends --modes classify-jax-float32 \
        classify-jax-bfloat16 classify-jax-float16 adversarial-jax-bfloat16 \
        forecast-jax-float32 classify-tensorflow-float32 \
        classify-tensorflow-xla-bfloat16 --out "benchmarks/records/chaos_$device.json"
    # What does not fit into the first call.
    for number in 0 1 2; do part "models-$number" 150 bash -c "models $number"; done
    for number in 0 1 2; do part "flags-$number" 150 bash -c "flags $number"; done
    part bench 200 bash -c bench
    [ "$device" = gpu ] &&
        part prices 240 bash -c 'price 2 float32 mixed_bfloat16 mixed_float16'
    part recipe-lstm 60 bash -c 'figures mnist_lstm mnist_lstm 3'
    part recipe-gan 90 bash -c 'figures mnist_gan mnist_gan 3'
}

export -f all examine predictions train twice third matrix models flags figures lstm price bench
export python mnist cifar device out backends
for turn in first again; do parts; done
echo && cat "$out/parts.txt" && echo
"$python" benchmarks/tables/gpu_table.py "$out/records" | tee "$out/table.txt"
