"""The processes of a job on many hosts: how one learns which it is.

They meet once, through jax.distributed, and part again: no process depends on another from then on, so that one that
dies takes none with it.
"""

from dataclasses import dataclass

import jax

from stella_jax.errors import StellaError

MEETING_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Hosts:
    """Process `index` of `count`."""

    index: int = 0
    count: int = 1


def meet(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Hosts:
    """Finds out which process this is; called before JAX is used for anything else.

    Args:
      coordinator: address and port of process 0, on which the others meet it; None finds out from the machine (TPU pod,
        Slurm, MPI, Kubernetes), or needs no meeting where the other two are given.
      count: number of processes.
      index: this one's, from 0.

    Raises:
      StellaError: nothing tells, or not all have come.
    """
    if coordinator is None and count is not None and index is not None:
        return Hosts(index, count)
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=MEETING_SECONDS)
        hosts = Hosts(jax.process_index(), jax.process_count())
        jax.distributed.shutdown()
    except (RuntimeError, ValueError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise StellaError(
            f"the processes of the job did not meet: {reason}. Give each --processes N --process I, and on a TPU slice "
            "--coordinator HOST:PORT of process 0 too."
        ) from error
    return hosts
