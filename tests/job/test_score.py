"""Jobs that score pairs: their output, also after kills, their inputs and their commands."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import content, environment, kill_at_call, replace_part, running
from paths import GOLDENS

from stella_jax import Reranker
from stella_jax.cli.main import main
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.readers.rows import Row, RowFields, make_row
from stella_jax.readers.split_reader import RowsDigest
from stella_jax.search import Index

MODEL = GOLDENS / "gte-reranker"
SHORT = ("--model", str(MODEL), "--max-length", "16", "--part-rows", "3", "--max-rejected", "90%")
PAIRS = [("tea", "green tea " * (i % 7) + str(i)) for i in range(6)] + [("", ""), ("tea " * 9, "a"), ("é", "北京")]
FIELDS = RowFields(query="query")
OPTIONS = JobOptions(fields=FIELDS, part_rows=3)
ORIGIN = {"model": str(MODEL), "revision": None}


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [longest])
        yield Reranker.from_pretrained(MODEL, max_length=16)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Nine pairs, a row without a query, one whose text is a number, and a repeated id."""
    rows = [{"id": f"r{i}", "query": query, "text": text, "n": i} for i, (query, text) in enumerate(PAIRS)]
    rows[2:2] = [{"id": "x", "text": "a"}, {"id": "y", "query": "a", "text": 5}, rows[0]]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(reranker: Reranker, corpus: Path, out: Path, options: JobOptions = OPTIONS):
    return run_job(reranker, ORIGIN, [corpus], out, options, RunOptions(max_rejected=0.9))


def table(out: Path) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(path, page_checksum_verification=True) for path in sorted(out.glob("part-*.parquet"))
    )


def rejected(out: Path) -> list[tuple[int, str]]:
    lines = (out / "_job/rejected.jsonl").read_text().splitlines()
    return [(row["row"], row["reason"]) for row in map(json.loads, lines)]


# The output


@pytest.mark.parametrize("activation", ["sigmoid", "none", None])
def test_parts_hold_the_bits_of_predict(reranker, corpus, tmp_path, activation):
    out = tmp_path / "out"
    summary = score(reranker, corpus, out, JobOptions(fields=FIELDS, part_rows=3, activation=activation))
    found = table(out)
    assert found.schema.names == ["id", "score", "n_tokens", "truncated"]
    assert found.schema.types == [pa.string(), pa.float32(), pa.int32(), pa.bool_()]
    assert found["id"].to_pylist() == [f"r{i}" for i in range(9)]
    np.testing.assert_array_equal(found["score"].to_numpy(), reranker.predict(PAIRS, activation=activation))
    tokens = reranker.tokenize(PAIRS)
    assert found["n_tokens"].to_pylist() == [len(each.ids) for each in tokens]
    assert found["truncated"].to_pylist() == [each.truncated for each in tokens]
    assert 0 < sum(found["truncated"].to_pylist()) < 9
    assert str(summary).startswith("9 rows scored, 3 rejected; ")
    assert pq.read_table(out).equals(found)


def test_rejected_rows_and_the_manifest(reranker, corpus, tmp_path):
    score(reranker, corpus, tmp_path / "out")
    assert rejected(tmp_path / "out") == [
        (3, "query is missing"),
        (4, "text is 5, not a string"),
        (5, "duplicate id, first seen at pairs.jsonl:1"),
    ]
    fields = json.loads((tmp_path / "out/_job/manifest.json").read_text())
    assert (fields["query_field"], fields["text_field"], fields["activation"]) == ("query", "text", "sigmoid")
    assert list(fields["fingerprint"]["model"]["heads"]) == ["1"]


def test_kept_columns(reranker, corpus, tmp_path, refused):
    options = JobOptions(fields=RowFields(query="query", keep=("n", "query")))
    score(reranker, corpus, tmp_path / "out", options)
    found = table(tmp_path / "out")
    assert found.schema.names == ["id", "score", "n_tokens", "truncated", "n", "query"]
    assert found["query"].to_pylist() == [query for query, _ in PAIRS]
    with refused("--keep", "'Score'"):
        RowFields(query="query", keep=("Score",))
    assert RowFields(keep=("score",)).keep == ("score",)


def test_the_encoding_of_scores(reranker, corpus, tmp_path):
    score(reranker, corpus, tmp_path / "out")
    column = pq.ParquetFile(tmp_path / "out/part-000000-0000.parquet").metadata.row_group(0).column(1)
    assert (column.path_in_schema, column.compression) == ("score", "ZSTD")
    assert "BYTE_STREAM_SPLIT" in column.encodings and not column.has_dictionary_page


def test_the_digest_distinguishes_queries_and_texts():
    def digest(text: str | tuple[str, str]) -> str:
        digest = RowsDigest()
        digest.add(Row("a", 1, "r", text))
        return digest.hexdigest()

    texts = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a\0", "b"), ("a", "\0b"), "ab", "a\0b"]
    assert len({digest(text) for text in texts}) == len(texts)


def test_a_row_of_a_pair():
    row = make_row("a", 1, "a:1", {"q": "tea", "t": "green"}, RowFields("t", query="q"))
    assert isinstance(row, Row) and (row.text, row.characters) == (("tea", "green"), 8)


# Kills and resumes


@pytest.mark.slow
def test_a_killed_process(reranker, corpus, tmp_path):
    command = [sys.executable, "-m", "stella_jax", "score", str(corpus), "--out", str(tmp_path / "out"), *SHORT]
    ended = subprocess.run(
        kill_at_call(command, "os:replace", 7),
        env=environment(tmp_path / "c"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, "", "")
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 2
    undisturbed = tmp_path / "undisturbed"
    for out in (tmp_path / "out", undisturbed):
        assert main(["score", str(corpus), "--out", str(out), *SHORT]) == 0
    assert content(tmp_path / "out") == content(undisturbed)
    np.testing.assert_array_equal(table(undisturbed)["score"].to_numpy(), reranker.predict(PAIRS))


@pytest.mark.nightly
def test_two_processes_write_the_same_bytes(corpus, tmp_path):
    def command(out: str, *options: str) -> list[str]:
        arguments = ("score", str(corpus), "--out", str(tmp_path / out), *SHORT, *options)
        return [sys.executable, "-m", "stella_jax", *arguments]

    many = ("--executor", "distributed", "--processes", "2", "--process")
    for commands in ([command("one")], [command("two", *many, "0"), command("two", *many, "1")]):
        with running(commands, env=environment(tmp_path / "c"), stderr=subprocess.PIPE, text=True) as processes:
            assert [(process.communicate(timeout=300)[1], process.returncode) for process in processes] == [
                ("", 0)
            ] * len(commands)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_only_missing_parts_are_scored_again(reranker, corpus, tmp_path):
    out = tmp_path / "out"
    score(reranker, corpus, out)
    before = content(out)
    assert score(reranker, corpus, out).rows == 0
    (out / "part-000000-0001.parquet").unlink()
    assert 0 < score(reranker, corpus, out).rows <= 3
    assert content(out) == before


def test_a_different_classifier_or_activation(reranker, corpus, tmp_path, checkpoint_copy, refused):
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "out"
    score(reranker, corpus, out)
    with refused("activation"):
        score(reranker, corpus, out, JobOptions(fields=FIELDS, part_rows=3, activation="none"))
    for name in ("new.pooler.dense.bias", "classifier.bias"):
        path = checkpoint_copy("gte-reranker")
        arrays = load_file(path / "model.safetensors")
        save_file(arrays | {name: arrays[name] + 1}, path / "model.safetensors")
        with refused("model.heads.1 was", mask="[0-9a-f]{12}"):
            score(Reranker.from_pretrained(path, max_length=16), corpus, out)
        shutil.rmtree(path)


def test_every_type_of_input_gives_the_same_scores(reranker, tmp_path, refused):
    columns = {"id": [f"r{i}" for i in range(9)], "query": [p[0] for p in PAIRS], "text": [p[1] for p in PAIRS]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    lines = [",".join(columns), *(",".join(f'"{columns[name][i]}"' for name in columns) for i in range(9))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for name in ("a.parquet", "a.csv"):
        score(reranker, tmp_path / name, tmp_path / f"{name}.out")
        np.testing.assert_array_equal(table(tmp_path / f"{name}.out")["score"].to_numpy(), reranker.predict(PAIRS))
    (tmp_path / "a.txt").write_text("tea\n")
    with refused("a.txt", "'query'"):
        score(reranker, tmp_path / "a.txt", tmp_path / "txt")


# Reading the output


def test_verify(reranker, corpus, tmp_path):
    out = tmp_path / "out"
    score(reranker, corpus, out)
    verdict = verify_job(out, sample=4)
    assert (verdict.rows, verdict.sampled, verdict.faults) == (9, 4, ())
    path = out / "part-000000-0001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    verdict = verify_job(out)
    assert "sha256" in verdict.faults[0]
    assert score(reranker, corpus, out).rows > 0
    assert verify_job(out).faults == ()


@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_a_wrong_score_is_found(reranker, corpus, tmp_path, by):
    """Although all hashes match it."""
    out = tmp_path / "out"
    score(reranker, corpus, out)
    replace_part(out, 1, lambda columns: columns.update(score=[value + by for value in columns["score"]]))
    [fault] = verify_job(out, sample=9).faults
    assert "part-000000-0001.parquet" in fault and ("are not finite" in fault or "again differ" in fault)


def test_scores_cannot_be_searched(reranker, corpus, tmp_path, refused):
    score(reranker, corpus, tmp_path / "out")
    with refused("out"):
        Index.open(tmp_path / "out")


# The commands


def test_score_verify_and_a_dry_run(corpus, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["score", str(corpus), "--out", out, *SHORT, "--raw-scores"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 9 rows scored, 3 rejected; ")
    assert table(tmp_path / "out")["score"].to_numpy().min() < 0
    assert main(["verify", out, "--sample", "3"]) == 0
    assert "9 rows are intact" in capsys.readouterr().out
    assert main(["search", out, "tea"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["score", str(corpus), "--dry-run", "--tokens-per-second", "100", *SHORT]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("rows        12, 2 of them invalid")
    assert " GB of scores\n" in shown


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["embed", "{corpus}", "--out", "out", "--model", str(MODEL)], [str(MODEL)]),
        (["score", "{corpus}", "--out", "out", "--model", "tiny"], ["tiny", "--model"]),
        (["score", "{corpus}", "--out", "out", *SHORT, "--max-length", "5"], ["max_seq_length 5"]),
        (["score", "{corpus}", "--out", "out", *SHORT, "--query-field", "q"], ["pairs.jsonl: ", "'q'"]),
        (["demo", "--model", str(MODEL)], [str(MODEL)]),
    ],
    ids=["embed", "tiny", "max-length", "query-field", "demo"],
)
def test_errors_of_the_commands(corpus, tmp_path, monkeypatch, capsys, arguments, names, check_message):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(corpus=corpus) for argument in arguments]) == 1
    shown, errors = capsys.readouterr()
    assert shown == ""
    assert errors.startswith("stella-jax: error: ") and errors.count("\n") == 1
    check_message(errors.rstrip("\n"), *names)


def test_raw_scores_exclude_an_activation(corpus, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["score", str(corpus), "--out", "out", "--raw-scores", "--activation", "sigmoid"])
    error = capsys.readouterr().err.splitlines()[-1]  # by argparse
    assert "--raw-scores" in error and "--activation" in error


# Ranking the results of search


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    words = ["fog", "law", "owl", "sea", "green tea", "jam"]
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": word}) + "\n" for i, word in enumerate(words)))
    return path


@pytest.fixture
def embedded(texts: Path, tmp_path: Path) -> Callable[[], str]:
    def run() -> str:
        out = str(tmp_path / "embedded")
        assert main(["embed", str(texts), "--out", out, "--dim", "32", "--max-length", "8"]) == 0
        return out

    return run


def test_rank(embedded, capsys):
    out = embedded()
    command = ["rank", out, "tea", "--rerank", str(MODEL)]
    capsys.readouterr()
    assert main([*command, "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = ["fog", "law", "owl", "sea", "green tea", "jam"]
    ranked = Reranker.from_pretrained(MODEL).rank("tea", words, top_k=3)
    assert [line.split(maxsplit=3) for line in lines] == [
        [str(i), f"{each['score']:.4f}", f"r{each['corpus_id']}", words[each["corpus_id"]]]
        for i, each in enumerate(ranked, 1)
    ]
    assert main(["search", out, "tea", "-k", "2"]) == 0
    nearest = {line.split()[2] for line in capsys.readouterr().out.splitlines()}
    assert main([*command, "-k", "2", "--candidates", "2", "--raw-scores"]) == 0
    assert {line.split()[2] for line in capsys.readouterr().out.splitlines()} == nearest


def test_rank_without_the_texts(embedded, texts, capsys, check_message):
    out = embedded()
    texts.unlink()
    capsys.readouterr()
    assert main(["rank", out, "tea", "--rerank", str(MODEL)]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "6 of 6 rows", mask=r"\br\d")
    assert main(["rank", out, "tea", "--rerank", "tiny"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "error: tiny: ", "--rerank")
