#!/usr/bin/env bash
#SBATCH --job-name=idmm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=128
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# sbatch scripts/slurm.sh rn_configs/imagenet.yaml [--section.key=value ...]    (from the project's folder; see docs/distributed.md)
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch scripts/slurm.sh CONFIG [--section.key=value ...]" >&2; exit 2; }
config=$1
shift
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a store of its own for each attempt: else a restart may find the addresses of the dead
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it
exec srun .venv/bin/torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:29400" --rdzv-id="$SLURM_JOB_ID" \
    train_idmm.py --config "$config" --training.resume=auto "$@"
