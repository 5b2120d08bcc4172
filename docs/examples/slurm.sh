#!/usr/bin/env bash
# Adapt a 7 B parent on 8 machines of 8 GPUs under SLURM. Linted, and not tried on a cluster: read it before you run it.
#
#   PARENT=Qwen/Qwen2.5-7B DATA=/data/corpus OUT=/data/my-dlm sbatch docs/examples/slurm.sh
#SBATCH --job-name=unveil
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${PARENT:?the parent: a folder or a hub id}" "${DATA:?the text to train on}" "${OUT:?the folder of the new model}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# torchrun would otherwise lead new processes to the addresses of the dead (pytorch/pytorch#135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# After SIGTERM the step is finished and a checkpoint written; torchrun kills what takes longer than this many seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
export OMP_NUM_THREADS=8

# A job that was put back into the queue goes on from its last checkpoint.
resume=()
if [[ -d "$OUT" ]]; then resume=(--resume); fi

srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_NNODES" \
  --nproc-per-node=8 \
  --max-restarts=3 \
  --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$head:29500" \
  -m unveil adapt "$PARENT" \
  --recipe leader --data "$DATA" --out "$OUT" "${resume[@]}" --device cuda \
  --tokens 5e9 --rows 512 --length 4096 --lr 1e-5 \
  --set accumulate=512 --set checkpointing=true --set parallel='"hsdp"' --set save_every=200
