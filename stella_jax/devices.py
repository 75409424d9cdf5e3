"""Starts JAX for the commands, and chooses their devices."""

import os
from pathlib import Path

import jax

from stella_jax.errors import StellaError


def start_jax() -> None:
    """Starts JAX with a persistent cache of compiled programs.

    Raises:
      StellaError: JAX cannot start, for example without the requested platform.
    """
    _use_compile_cache()
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # AssertionError, without a message, if a plugin is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines()[0] if str(error) else f"no such device, with JAX_PLATFORMS={platforms!r}"
        raise StellaError(f"JAX: cannot start ({reason}).") from error


def all_accelerators() -> str | None:
    """A mesh with rows over all accelerators of this process; None on CPU, whose cores are one device."""
    return None if jax.default_backend() == "cpu" else f"data={jax.local_device_count()}"


def _use_compile_cache() -> None:
    """Keeps all compiled programs for the next command, unless the user's environment says otherwise."""
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stella-jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or not writable: every command compiles
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
