"""What the command line's commands do with their arguments."""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import jax

from stella_jax.demo import run_demo
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.hosts import Hosts, meet
from stella_jax.job.rows import Fields
from stella_jax.job.run import Running, run_job
from stella_jax.job.settings import Settings, default_part_rows
from stella_jax.job.stop import Stop, stopping_on_sigterm
from stella_jax.job.verify import verify_job
from stella_jax.layout import listed
from stella_jax.search import Hit, Index


def embed(arguments: Namespace) -> None:
    """`embed INPUT... --out DIR`: writes the job, ends with a line of its numbers."""
    hosts = _hosts(arguments)
    _start_jax()
    model = _load(arguments, arguments.dims or arguments.dim, arguments.dtype, arguments.mesh or _all_accelerators())
    if arguments.max_length:
        model.max_seq_length = arguments.max_length
    settings = Settings(
        fields=Fields(arguments.text_field, arguments.id_field),
        prompt=_prompt(model, arguments.prompt) if arguments.prompt else model.prompts.get("document", ""),
        normalize=arguments.normalize,
        part_rows=arguments.part_rows or default_part_rows(),
    )
    shown = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    running = Running(arguments.max_rejected, hosts, Stop(arguments.grace), shown)
    origin = {"model": _lasting(arguments.model), "revision": arguments.revision}
    with stopping_on_sigterm(running.stop):
        summary = run_job(model, origin, arguments.inputs, arguments.out, settings, running)
    print(f"{arguments.out}: {summary}")


def verify(arguments: Namespace) -> None:
    """`verify DIR`: says that all is well, or names every fault."""
    if arguments.sample:
        _start_jax()
    verdict = verify_job(arguments.out, arguments.sample, arguments.model, arguments.revision)
    if not verdict.faults:
        sampled = f"; {verdict.sampled} embedded again came out the same" if verdict.sampled else ""
        print(f"{arguments.out}: {verdict.rows} rows are whole: hashes, pages, counts, values and ids{sampled}")
        return
    redo = f"run the embed command again: it redoes {listed(verdict.withdrawn)} alone." if verdict.withdrawn else ""
    raise StellaError("\n  ".join([f"{arguments.out} is damaged:", *verdict.faults, *([redo] if redo else [])]))


def search(arguments: Namespace) -> None:
    """`search DIR QUERY`: prints rank, score, id and text of the nearest rows."""
    _start_jax()
    index = Index.open(arguments.out, arguments.model, arguments.revision, arguments.dim)
    prompt = _prompt(index.model, arguments.prompt) if arguments.prompt else None
    hits = index.search(arguments.query, arguments.k, prompt)
    texts = index.texts(hits)
    id_width = max((len(_printable(hit.id)) for hit in hits), default=0)
    for rank, hit in enumerate(hits, 1):
        print(_line(rank, hit, texts.get(hit.id, ""), id_width))


def demo(arguments: Namespace) -> None:
    """`demo`: prints stella's own example."""
    _start_jax()
    print(run_demo(_load(arguments, arguments.dim), arguments.task))


COMMANDS: dict[str, Callable[[Namespace], None]] = {"embed": embed, "verify": verify, "search": search, "demo": demo}


def _load(
    arguments: Namespace, dim: int | tuple[int, ...] | None, dtype: str | None = None, mesh: str | None = None
) -> Stella:
    return Stella.from_pretrained(arguments.model, dim, dtype, mesh, arguments.revision)


def _hosts(arguments: Namespace) -> Hosts:
    """Which process of how many this is; nothing of JAX may be used before."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.executor != "distributed":
        if any(value is not None for value in given):
            raise StellaError("--processes, --process and --coordinator go with --executor distributed.")
        return Hosts()
    if (arguments.processes is None) != (arguments.process is None):
        raise StellaError("--processes and --process go together.")
    if arguments.process is not None and arguments.process >= arguments.processes:
        raise StellaError(f"--process {arguments.process} is none of {arguments.processes}, counted from 0.")
    return meet(*given)


def _all_accelerators() -> str | None:
    """Rows over every accelerator of this process; the cores of a CPU are one device already."""
    return None if jax.default_backend() == "cpu" else f"data={jax.local_device_count()}"


def _start_jax() -> None:
    _use_compile_cache()
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where a plugin is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines()[0] if str(error) else f"no such device, with JAX_PLATFORMS={platforms!r}"
        raise StellaError(f"JAX cannot start: {reason}.") from error


def _use_compile_cache() -> None:
    """Keeps compiled programs for the next command, unless the user's environment decides about that already."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stella-jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: every command compiles for itself
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _prompt(model: Stella, name: str) -> str:
    return "" if name == "none" else model.resolve_prompt(name)


def _lasting(model: str) -> str:
    """The model's name in a form that holds in other working directories too."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model != "tiny" and path.exists() else model


def _line(rank: int, hit: Hit, text: str, id_width: int) -> str:
    """One line of the terminal."""
    line = f"{rank:3}  {hit.score:.4f}  {_printable(hit.id):{id_width}}  {_printable(text)}".rstrip()
    width = max(60, shutil.get_terminal_size().columns)
    return line if len(line) <= width else line[: width - 1] + "…"


def _printable(text: str) -> str:
    """The text on one line, and without characters that would steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
