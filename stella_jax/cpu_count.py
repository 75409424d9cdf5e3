"""The number of processors that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Linux: this process's control groups, and the folder of their limits.
MEMBERSHIP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """The number of processors that affinity and control groups allow this process to use.

    A container with `--cpus=2` sees all processors of the machine, but may use the time of two.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """The quotas, in processors, of this process's control groups and their parents."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container, the group may have the name that the machine gives it, while its limits are at the top.
        for folder in (path := PurePosixPath(group), *path.parents):
            yield from _old_quota(folder) if controllers else _new_quota(folder)


def _new_quota(folder: PurePosixPath) -> Iterator[float]:
    """Quota of a version 2 group; see cpu.max in docs.kernel.org/admin-guide/cgroup-v2.html."""
    quota, _, period = _read(GROUPS / folder.relative_to("/") / "cpu.max").partition(" ")
    if quota.isdecimal():  # "max" means no limit
        yield int(quota) / int(period)


def _old_quota(folder: PurePosixPath) -> Iterator[float]:
    """Quota of a version 1 group; see docs.kernel.org/scheduler/sched-bwc.html."""
    group = GROUPS / "cpu" / folder.relative_to("/")
    quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdecimal():  # -1 means no limit
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
