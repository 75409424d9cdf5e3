#!/bin/bash
# A bulk job on a Cloud TPU pod slice, one process a host:
#
#   TPU=my-slice ZONE=us-west4-a examples/pod/tpu.sh 'gs://bucket/corpus/*.parquet' --out gs://bucket/vectors \
#       --model NovaSearch/stella_en_400M_v5
#
# Every host runs the same command; JAX learns each host's index from the slice. The hosts connect once, when they start,
# since the chips of a slice start together; after that they run independently. First install stella-jax on all of them,
# from a clone:
#
#   pip wheel --no-deps --wheel-dir dist .
#   gcloud compute tpus tpu-vm scp dist/stella_jax-*.whl "$TPU:." --zone "$ZONE" --worker=all
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
#       --command 'pip install "$(ls stella_jax-*.whl)[tpu]"'
#
# After a preemption, run the same command again, on a slice of any size: it does only what is missing.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"

command="python3 -m stella_jax embed $(printf '%q ' "$@") --executor distributed"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command"
