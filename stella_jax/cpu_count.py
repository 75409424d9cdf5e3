"""How many of the machine's processors this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of Linux: in which control groups this process is, and where their limits lie.
MEMBERSHIP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Processors that this process may use: by its affinity, and by the time that control groups allow it.

    A container with `--cpus=2` sees all processors of the machine, and may use the time of two.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """Processors' worth of time that the control groups of this process may take, and those around them."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container, the group may have the machine's name for it, while its limits are at the top.
        for folder in (path := PurePosixPath(group), *path.parents):
            yield from _old_quota(folder) if controllers else _new_quota(folder)


def _new_quota(folder: PurePosixPath) -> Iterator[float]:
    """Of a group of version 2; see cpu.max in docs.kernel.org/admin-guide/cgroup-v2.html."""
    quota, _, period = _read(GROUPS / folder.relative_to("/") / "cpu.max").partition(" ")
    if quota.isdecimal():  # "max" means unlimited
        yield int(quota) / int(period)


def _old_quota(folder: PurePosixPath) -> Iterator[float]:
    """Of a group of version 1; see docs.kernel.org/scheduler/sched-bwc.html."""
    group = GROUPS / "cpu" / folder.relative_to("/")
    quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdecimal():  # -1 means unlimited
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
