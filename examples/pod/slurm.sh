#!/bin/bash
# A bulk job on a Slurm cluster:
#
#   sbatch --nodes=4 --gpus-per-node=8 examples/pod/slurm.sh '/shared/corpus/*.jsonl' --out /shared/vectors \
#       --model /shared/stella_en_400M_v5
#
# One process a node, which uses all of its GPUs (or its CPU cores). Inputs and --out are on a file system that all nodes
# share, or behind URLs. The processes need no network between them: each embeds every n-th split, then takes over the splits
# of processes that died. After the time limit, submit the same command again, with any number of nodes: it does only
# what is missing. Slurm itself requeues the job only after a node failure or a preemption.
#
#SBATCH --job-name=embed
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

# One process that ends must not take the others with it.
exec srun --kill-on-bad-exit=0 bash -c \
  'exec python -m stella_jax embed "$@" --executor distributed --processes "$SLURM_NTASKS" --process "$SLURM_PROCID" \
    --grace 100' embed "$@"
