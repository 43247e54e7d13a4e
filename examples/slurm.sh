#!/bin/bash
# Two machines of four GPUs each: sbatch examples/slurm.sh
#SBATCH --job-name=alexnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
# A state is written before the time is over; the same line then goes on with the run.
#SBATCH --signal=TERM@120

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8  # the cores of a machine divided by its processes
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100  # seconds, for a step and a state
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    -m alexnet_lib train /shared/imagenet --recipe paper --num-workers 8 \
    --out /shared/runs/imagenet --resume auto
