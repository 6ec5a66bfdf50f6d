#!/usr/bin/env bash
# What gpu.sh takes: the folder of wheels for a machine that has JAX, NumPy and SciPy,
# and from a prepared TFDS folder the two data files beside it.
#
#   bash benchmarks/gpu_wheels.sh wheels 3.12 [DIR]      # the folder, that machine's Python
set -euo pipefail
goal=$(realpath -m "$1") version=$2 data=${3:-}
cd "$(dirname "$0")/.."
pip=${PIP:-.venv/bin/pip}
rm -f "$goal"/gpuzoo-*.whl
"$pip" wheel -q . --no-deps -w "$goal"
"$pip" download -q --no-deps --only-binary=:all: --python-version "$version" -d "$goal" \
    keras absl-py namex optree h5py packaging rich markdown-it-py mdurl pygments \
    tyro docstring-parser typeguard typing-extensions shtab safetensors \
    jsonschema jsonschema-specifications attrs referencing rpds-py \
    scikit-learn narwhals joblib threadpoolctl pillow faster-coco-eval \
    matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six \
    importlib_resources
rm -rf build
[ -z "$data" ] || .venv/bin/python benchmarks/speed/to_npz.py "$data" "$goal/.."
du -sh "$goal"
