"""Runs the commands of the command line."""

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.hub import resolve
from stella_jax.cli.demo import run_demo
from stella_jax.devices import start_jax
from stella_jax.dry_run.estimate import estimate_job
from stella_jax.dry_run.row_check import check_rows
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError, join_words
from stella_jax.graceful_shutdown import GracefulShutdown, stopping_on_sigterm
from stella_jax.job.options import JobCommand, JobOptions, ModelOptions, RunOptions, prompt_from_option
from stella_jax.job.processes import Processes, resolve_processes
from stella_jax.job.progress import Summary
from stella_jax.job.run import heartbeat, run_files
from stella_jax.job.verify import verify_job
from stella_jax.readers.first_rows import check_first_rows
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.kept_columns import resolve_types
from stella_jax.readers.rows import RowFields
from stella_jax.reranker import Reranker
from stella_jax.search import Hit, Index
from stella_jax.storage.store import open_store


def embed_or_score(arguments: Namespace) -> None:
    """`embed INPUT... --out DIR`, or `score`: writes the job and prints a summary."""
    command = _job_command(arguments)
    stop = GracefulShutdown(arguments.grace)
    on_terminal = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    show = "bar" if on_terminal else "lines" if arguments.progress is None else "nothing"
    with stopping_on_sigterm(stop):
        run = RunOptions(arguments.max_rejected, _processes(arguments), stop, show)
        if arguments.dry_run:
            _dry_run(arguments, command)
        elif arguments.executor == "ray":
            from stella_jax.job.ray_job import run_ray_job  # here, since Ray is an extra

            print(f"{command.out}: {run_ray_job(command, run, arguments.ray_address)}")
        else:
            print(f"{command.out}: {_run(command, run)}")


def verify(arguments: Namespace) -> None:
    """`verify DIR...`: checks jobs, and lists every fault."""
    if arguments.inputs and not arguments.sample:
        raise StellaError("--input: requires --sample.")
    if arguments.sample:
        start_jax()
    damaged = [fault for out in arguments.out if (fault := _verify(out, arguments))]
    if damaged:
        raise StellaError("\n".join(damaged))


def _verify(out: str, arguments: Namespace) -> str:
    """Prints that a job is intact, or returns its faults."""
    verdict = verify_job(out, arguments.sample, arguments.model, arguments.revision, arguments.inputs)
    if not verdict.faults:
        sampled = f"; {verdict.sampled} computed again gave the same result" if verdict.sampled else ""
        print(f"{out}: {verdict.rows} rows are intact: hashes, pages, counts, values and ids{sampled}")
        return ""
    again = join_words(verdict.invalidated)
    redo = f"run its command again to make {again} again." if again else ""
    return "\n  ".join([f"{out}: damaged:", *verdict.faults, *([redo] if redo else [])])


def search(arguments: Namespace) -> None:
    """`search DIR QUERY`: prints rank, score, id and text of the nearest rows."""
    start_jax()
    found = _search(_open_index(arguments), arguments, arguments.k)
    _show([(hit, text or "") for hit, text in found])
    if gone := [hit.id for hit, text in found if text is None]:
        inputs = "their inputs were moved or written to since the job"
        print(f"stella-jax: texts of {len(gone)} of {len(found)} rows not found: {inputs}", file=sys.stderr)


def rank(arguments: Namespace) -> None:
    """`rank DIR QUERY --rerank MODEL`: prints the results of `search` in a reranker's order, with its scores."""
    start_jax()
    index = _open_index(arguments)
    checkpoint = Checkpoint.open(resolve(arguments.rerank, arguments.rerank_revision))
    checkpoint.check_scores(arguments.rerank, "pass a reranker to --rerank")
    reranker = Reranker(checkpoint)
    found = _search(index, arguments, max(arguments.k, arguments.candidates))
    if gone := [hit.id for hit, text in found if text is None]:
        raise StellaError(
            f"{join_words(arguments.out)}: texts of {len(gone)} of {len(found)} rows not found, such as {gone[0]}; "
            "move the job's inputs back."
        )
    texts = [text or "" for _, text in found]
    ranked = reranker.rank(arguments.query, texts, arguments.k, activation=arguments.activation)
    best = [(found[each["corpus_id"]], each["score"]) for each in ranked]
    _show([(replace(hit, score=score), text or "") for (hit, text), score in best])


def _open_index(arguments: Namespace) -> Index:
    return Index.open(arguments.out, arguments.model, arguments.revision, arguments.dim)


def _search(index: Index, arguments: Namespace, k: int) -> list[tuple[Hit, str | None]]:
    """The k rows nearest to the query, with their texts if the inputs are unchanged."""
    prompt = prompt_from_option(index.model, arguments.prompt) if arguments.prompt is not None else None
    hits = index.search(arguments.query, k, prompt)
    texts = index.texts(hits)
    return [(hit, texts.get(hit)) for hit in hits]


def _show(rows: Sequence[tuple[Hit, str]]) -> None:
    id_width = max((len(_printable(hit.id)) for hit, _ in rows), default=0)
    for number, (hit, text) in enumerate(rows, 1):
        print(_line(number, hit, text, id_width))


def demo(arguments: Namespace) -> None:
    """`demo`: prints the example of stella's model card."""
    start_jax()
    model = Stella.from_pretrained(arguments.model, arguments.dim, revision=arguments.revision)
    print(run_demo(model, arguments.task))


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "embed": embed_or_score,
    "score": embed_or_score,
    "verify": verify,
    "search": search,
    "rank": rank,
    "demo": demo,
}


def _job_command(arguments: Namespace) -> JobCommand:
    return JobCommand(
        inputs=tuple(arguments.inputs),
        out=arguments.out or "",
        model=ModelOptions(
            model=arguments.model,
            revision=arguments.revision,
            dim=arguments.dims or arguments.dim,
            dtype=arguments.dtype,
            mesh=arguments.mesh,
            max_length=arguments.max_length,
            scores=arguments.query_field is not None,
        ),
        job=JobOptions(
            fields=RowFields(arguments.text_field, arguments.id_field, arguments.keep, query=arguments.query_field),
            prompt=arguments.prompt,
            normalize=arguments.normalize,
            precision=arguments.precision,
            ranges=arguments.ranges,
            part_rows=arguments.part_rows,
            split_bytes=arguments.split_bytes,
            activation=arguments.activation,
        ),
    )


def _dry_run(arguments: Namespace, command: JobCommand) -> None:
    rows = None
    if arguments.all_rows:
        files = open_inputs(command.inputs, command.job.fields)
        check_first_rows(files, command.job.fields)
        fields = resolve_types([file.location for file in files], command.job.fields)
        found = check_rows(files, fields, print)
        print(f"{found}\n", flush=True)
        rows = found.rows
    print(estimate_job(command, arguments.tokens_per_second, arguments.chips, rows))


def _run(command: JobCommand, run: RunOptions) -> Summary:
    files = open_inputs(command.inputs, command.job.fields)  # before the model, which may have to be downloaded
    with heartbeat(open_store(command.out), run.processes):
        model = command.model.load()
        return run_files(model, command.model.origin(), files, command.out, command.job, run)


def _processes(arguments: Namespace) -> Processes:
    """Resolves which process this is, of how many; must run before anything uses JAX."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.ray_address is not None and arguments.executor != "ray":
        raise StellaError("--ray-address: requires --executor ray.")
    if arguments.executor != "distributed":
        if any(value is not None for value in given):
            raise StellaError("--processes, --process and --coordinator: require --executor distributed.")
        return Processes()
    if (arguments.processes is None) != (arguments.process is None):
        raise StellaError("--processes and --process: pass both or neither.")
    if arguments.process is not None and arguments.process >= arguments.processes:
        raise StellaError(f"--process {arguments.process}: must be below --processes {arguments.processes}.")
    return resolve_processes(*given)


def _line(rank: int, hit: Hit, text: str, id_width: int) -> str:
    """One line of output, cut at the terminal's width."""
    line = f"{rank:3}  {hit.score:.4f}  {_printable(hit.id):{id_width}}  {_printable(text)}".rstrip()
    width = max(60, shutil.get_terminal_size().columns)
    return line if len(line) <= width else line[: width - 1] + "…"


def _printable(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
