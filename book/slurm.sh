#!/bin/bash
# One job that asks for more: it runs the study, and Dask asks SLURM for eight workers
# of one GPU each. Submit it with: sbatch slurm.sh
#SBATCH --job-name=pure-nb
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=24:00:00

# What each worker asks for. CHANGE: partition or queue, account, memory, time.
export DASK_JOBQUEUE__SLURM__CORES=1
export DASK_JOBQUEUE__SLURM__PROCESSES=1
export DASK_JOBQUEUE__SLURM__JOB_CPU=8
export DASK_JOBQUEUE__SLURM__MEMORY=32GB
export DASK_JOBQUEUE__SLURM__WALLTIME=04:00:00
export DASK_JOBQUEUE__SLURM__JOB_EXTRA_DIRECTIVES='["--gpus=1", "--requeue"]'

# CHANGE: a folder that all machines see. What is finished stays there after the job.
export PURE_NB_STORE="$HOME/pure_nb_results"

# CHANGE: the study, and where the images are. Submitted again after a time limit, it
# goes on where it was.
pure-nb run imagenet-resnet50 --data /data/imagenet/val --weights resnet50.safetensors \
    --cluster slurm:8 --device cuda --precision bfloat16 --channels-last \
    --workers 6 --threads 1
