#!/bin/bash
# Train with torchrun; on each of two machines, in a folder that they share:
#
#     HEAD=first-machine bash torchrun.sh [RECIPE [OPTION...]]
#
# Of torchrun only what starts the processes is used, and starts them again.
set -eu
exec torchrun --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-2}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:?the first machine}:29400" \
    --rdzv-id gpuzoo --no-python bash train.sh "$@"
