"""The working directory that mining makes beside its output and removes at the end."""

import os
import re
from pathlib import Path

from stella_jax.errors import StellaError, quoted
from stella_jax.storage.atomic import is_leftover

KEY = r"[0-9a-f]{16}"
WRITTEN = re.compile(
    rf"(texts|corpus|anchors)(\.parquet|-{KEY}\.npy|/part-[\d-]+\.parquet|/_job/.+)"
    rf"|nearest-{KEY}(-{KEY})?/\d+-\d+\.npz",
    re.DOTALL,
)


def check_work_directory(work: Path) -> None:
    """Refuses a directory whose removal would delete what mining did not write.

    Raises:
      StellaError: it has another file, or is not a directory.
    """
    advice = "move it elsewhere, or use another --out or --work."
    if os.path.lexists(work) and (work.is_symlink() or not work.is_dir()):
        raise StellaError(f"{quoted(work)}: not a directory, which mine would make and remove here; {advice}")
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if not path.is_dir() and not WRITTEN.fullmatch(name) and not is_leftover(path.name):
            raise StellaError(f"{quoted(work)}: contains {quoted(name)}, which mine did not write; {advice}")
