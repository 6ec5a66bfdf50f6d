#!/bin/bash
# Train on two machines with two GPUs each, with Slurm:
#
#     sbatch slurm.sh [RECIPE [OPTION...]]
#
# The folder must be one that all machines share; train.sh lies in it. When a machine
# fails, Slurm starts the job again; at the time limit it stops with a checkpoint.
#SBATCH --job-name=gpuzoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
exec srun --kill-on-bad-exit=1 bash train.sh "$@"
