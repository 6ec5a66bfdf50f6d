#!/bin/bash
# Train in four processes with Open MPI, on the machines of a host file or of a job:
#
#     bash openmpi.sh [RECIPE [OPTION...]]      PROCESSES=8 for as many
#
# Run it on the machine of the first process, in a folder that all machines share.
set -eu
export MASTER_ADDR=${MASTER_ADDR:-$(hostname)} MASTER_PORT=${MASTER_PORT:-29500}
exec mpirun -n "${PROCESSES:-4}" -x MASTER_ADDR -x MASTER_PORT bash train.sh "$@"
