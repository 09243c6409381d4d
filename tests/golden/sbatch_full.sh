#!/bin/bash

# Parameters
#SBATCH --account=team
#SBATCH --constraint='a2&roce'
#SBATCH --cpus-per-task=64
#SBATCH --dependency=singleton
#SBATCH --exclude=n3
#SBATCH --exclusive
#SBATCH --gres=npu:8
#SBATCH --job-name=sweep-s-0
#SBATCH --licenses=x:1
#SBATCH --mail-type=END
#SBATCH --mem=0
#SBATCH --no-requeue
#SBATCH --nodelist='n[1-4]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/s/allocations/0/1/submitit/%j_0_log.out
#SBATCH --partition=npu
#SBATCH --qos=high
#SBATCH --reservation='maintenance window'
#SBATCH --signal=USR2@90
#SBATCH --spread-job
#SBATCH --time=1591

# setup
module load cann
export A='b c'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/s/allocations/0/1/submitit/%j_%t_log.out --kill-on-bad-exit=1 --wait=60 --mpi=none '--cpu-bind=map_cpu:0,1 2' <command>
