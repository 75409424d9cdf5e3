"""A small Ray cluster for the tests of it."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """One node with two CPUs on this machine; this process is connected to it."""
    from ray.cluster_utils import Cluster

    from stella_jax.job.ray_cluster import connected

    before = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        # The cause of a death is known some time after the call has failed; later than this, it is "unavailable".
        patch.setenv("RAY_timeout_ms_task_wait_for_death_info", "60000")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        with connected(cluster.address):
            yield cluster
        cluster.shutdown()
    signal.signal(signal.SIGTERM, before)
