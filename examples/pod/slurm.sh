#!/bin/bash
# A bulk job on a Slurm cluster:
#
#   sbatch --nodes=4 --gpus-per-node=8 examples/pod/slurm.sh '/shared/corpus/*.jsonl.gz' --out /shared/vectors
#
# One process a node, which uses all of its GPUs (or its CPU cores). Inputs and --out are on a file system that all nodes
# share, or behind URLs. The processes need no network among them: each takes every n-th part, and then what dead ones
# left. Submitted again, with as many nodes as you like, the same command does what is missing and nothing else.
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
