#!/usr/bin/env bash
# The folder of wheels that gpu.sh takes, for a machine that has JAX, NumPy and SciPy.
#
#   bash benchmarks/gpu_wheels.sh wheels 3.12      # the folder, that machine's Python
set -euo pipefail
goal=$(realpath -m "$1") version=$2
cd "$(dirname "$0")/.."
pip=${PIP:-.venv/bin/pip}
"$pip" wheel -q . --no-deps -w "$goal"
"$pip" download -q --no-deps --only-binary=:all: --python-version "$version" -d "$goal" \
    keras absl-py namex optree h5py packaging rich markdown-it-py mdurl pygments \
    tyro docstring-parser typeguard typing-extensions shtab safetensors \
    jsonschema jsonschema-specifications attrs referencing rpds-py \
    scikit-learn joblib threadpoolctl pillow faster-coco-eval \
    matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six \
    importlib_resources
rm -rf build
du -sh "$goal"
