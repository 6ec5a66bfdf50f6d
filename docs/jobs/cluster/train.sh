#!/bin/bash
# What each process of a job runs: it begins the training, or goes on with it.
#
#     train.sh [RECIPE [OPTION...]]      the run folder is $RUN, or "run"
#
# Each process decides before it meets the others, and a run folder is made after that:
# so all decide alike.
set -eu
run=${RUN:-run}
if [ -e "$run/run.json" ]; then
    exec gpuzoo resume "$run" --distributed
fi
exec gpuzoo train "${@:-cifar10}" --backend jax --elastic --distributed --out "$run"
