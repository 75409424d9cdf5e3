#!/bin/bash
# A bulk job on a Cloud TPU pod slice, one process a host:
#
#   TPU=my-slice ZONE=us-west4-a examples/pod/tpu.sh 'gs://bucket/corpus/*.parquet' --out gs://bucket/vectors
#
# Every host runs the same command; who is who, JAX learns from the slice. The hosts meet once, when they start, since the
# chips of a slice start together; from then on none needs another. stella-jax is installed on all of them first:
#
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command 'pip install "stella-jax[tpu]"'
#
# After a preemption, or with a slice of another size, the same command does what is missing and nothing else.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"

command="python3 -m stella_jax embed $(printf '%q ' "$@") --executor distributed"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command"
