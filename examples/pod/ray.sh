#!/bin/bash
# A bulk job on a Ray cluster. Run it on every machine, with the same stella-jax, Ray and Python on each:
#
#   on one:         examples/pod/ray.sh head
#   on all others:  examples/pod/ray.sh join HEAD_IP      (at any time; machines may also leave during the job)
#   on the head:    examples/pod/ray.sh embed 'gs://bucket/corpus/*.parquet' --out gs://bucket/vectors \
#                       --model NovaSearch/stella_en_400M_v5
#   at the end:     examples/pod/ray.sh leave             (on every machine)
#
# Inputs and --out are in a bucket or on a file system that all machines share. Where a cluster exists already (KubeRay,
# ray up, Anyscale), only `embed` is needed, with RAY_ADDRESS set or inside `ray job submit`.
#
# Anyone who can reach a Ray cluster can run code on it: keep its ports inside a private network, and give all machines the
# same token (`ray get-auth-token --generate` on the head, then copy ~/.ray/auth_token to the others).
set -euo pipefail
PORT=${PORT:-6379}
export RAY_USAGE_STATS_ENABLED=0

case ${1:-} in
  head)
    # HEAD_CPUS=0 keeps a small head free for the driver; then let another machine join before `embed`.
    ray start --head --port="$PORT" --include-dashboard=false ${HEAD_CPUS:+--num-cpus="$HEAD_CPUS"}
    ;;
  join)
    # Ray finds GPUs itself, and TPUs on Google's machines; elsewhere add --resources='{"TPU": 4}'.
    ray start --address="${2:?the IP of the head}:$PORT"
    ;;
  embed)
    # A worker has all chips of a TPU host, a GPU, or eight or more CPUs. However it stopped, the same command resumes
    # the job, on any machines.
    shift
    exec python -m stella_jax embed "$@" --executor ray
    ;;
  leave)
    ray stop
    ;;
  *)
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
