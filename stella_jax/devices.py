"""JAX as the commands start it, and the devices that they use."""

import os
from pathlib import Path

import jax

from stella_jax.errors import StellaError


def start_jax() -> None:
    """Starts JAX, with compiled programs kept from one run to the next.

    Raises:
      StellaError: it cannot start, as on a platform that is not there.
    """
    _use_compile_cache()
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where a plugin is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines()[0] if str(error) else f"no such device, with JAX_PLATFORMS={platforms!r}"
        raise StellaError(f"JAX cannot start: {reason}.") from error


def all_accelerators() -> str | None:
    """The mesh of every accelerator of this process, rows over all; the cores of a CPU are one device already."""
    return None if jax.default_backend() == "cpu" else f"data={jax.local_device_count()}"


def _use_compile_cache() -> None:
    """Keeps compiled programs for the next command, all of them, unless the user's environment decides about that."""
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stella-jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: every command compiles for itself
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
