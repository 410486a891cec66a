#!/bin/bash
# A run on two nodes of eight GPUs, one process for each: sbatch slurm.sh --dataset path/to/mypairs
#SBATCH --job-name=pix2pix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is up every process hears of it, and a checkpoint is written.
#SBATCH --signal=USR1@120

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python train.py "$@"' train "$@"
code=$?

# 138 says that USR1 ended it, so there is more to do: the job queues again, and goes on.
if [ $code -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
