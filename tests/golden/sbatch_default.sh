#!/bin/bash

# Parameters
#SBATCH --dependency=singleton
#SBATCH --exclusive
#SBATCH --job-name=sweep-s-0
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/s/allocations/0/1/submitit/%j_0_log.out
#SBATCH --signal=USR2@90
#SBATCH --time=480

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/s/allocations/0/1/submitit/%j_%t_log.out --kill-on-bad-exit=1 --wait=60 <command>
