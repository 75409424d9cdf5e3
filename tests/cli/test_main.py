"""The command line: output, errors, exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from marks import slow

import stella_jax
from stella_jax.cli.main import main
from stella_jax.job.options import RunOptions

SHORT = ["--dim", "32", "--max-length", "8", "--max-rejected", "25%"]


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    long = {"id": "long", "text": "owl\x1b[31m\n" * 99}
    rows = [long, {"id": 2, "text": "sea"}, {"id": "x"}, {"id": 3, "text": "fog"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shell(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stella_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def console(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("stella-jax")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_embed_and_search(corpus, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["embed", str(corpus), "--out", out, "--part-rows", "2", *SHORT]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith(f"{out}: 3 rows embedded, 1 rejected; ")
    assert "tokens/s" in output
    assert errors == ""
    assert main(["embed", str(corpus), "--out", out, "--part-rows", "2", *SHORT]) == 0
    assert capsys.readouterr().out == f"{out}: 3 rows embedded, 1 rejected; nothing was left to do\n"
    assert main(["search", out, "sea", "-k", "3", "--prompt", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  1  1.0000  2     sea"
    [long] = [line for line in lines if "long" in line]
    assert len(long) == 100
    assert long.endswith("…")
    assert "owl\ufffd[31m owl" in long


def test_a_warning_looks_like_an_error(corpus, tmp_path, capsys):
    assert main(["embed", str(corpus), "--out", str(tmp_path / "out"), "--keep", "titel", *SHORT]) == 0
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"stella-jax: warning: {corpus}: none of the first ")


def test_search_says_that_texts_are_not_found(corpus, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["embed", str(corpus), "--out", out, *SHORT]) == 0
    corpus.touch()
    capsys.readouterr()
    assert main(["search", out, "sea", "-k", "2", "--prompt", "none"]) == 0
    output, errors = capsys.readouterr()
    assert output.splitlines()[0] == "  1  1.0000  2"
    assert errors.startswith("stella-jax: texts of 2 of 2 rows not found")


def test_mesh_writes_the_same_bytes(corpus, tmp_path, capsys, check_message):
    written = []
    for name, mesh in (("one", []), ("two", ["--mesh", "data=2"])):
        assert main(["embed", str(corpus), "--out", str(tmp_path / name), *mesh, *SHORT]) == 0
        written.append((tmp_path / name / "part-000000-0000.parquet").read_bytes())
    assert written[0] == written[1]
    assert main(["embed", str(corpus), "--out", str(tmp_path / "three"), "--mesh", "model=3", *SHORT]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "num_attention_heads")


def test_progress_bar(corpus, tmp_path, capsys):
    assert main(["embed", str(corpus), "--out", str(tmp_path / "out"), "--progress", *SHORT]) == 0
    errors = capsys.readouterr().err
    assert "100%" in errors and "rows" in errors
    assert "tokens/s" in errors


@pytest.mark.parametrize(
    ("arguments", "manifest"),
    [
        (
            ["--prompt", "s2s_query", "--max-length", "16"],
            {"prompt": "Instruct: Retrieve semantically similar text.\nQuery: "},
        ),
        (["--prompt", "none"], {"prompt": ""}),
        (["--normalize", "--dtype", "bfloat16"], {"normalize": True, "dtype": "bfloat16"}),
        (["--id-field", "id", "--no-normalize"], {"id_field": "id", "normalize": False}),
        ([], {"prompt": "", "dim": 32, "max_seq_length": 8, "model": "tiny", "revision": None}),
    ],
)
def test_options_reach_the_job(corpus, tmp_path, arguments, manifest):
    out = tmp_path / "out"
    assert main(["embed", str(corpus), "--out", str(out), *SHORT, *arguments]) == 0
    found = json.loads((out / "_job" / "manifest.json").read_text())
    assert {name: found[name] for name in manifest} == manifest


def test_search_from_another_directory(corpus, tmp_path, monkeypatch):
    (tmp_path / "here").symlink_to(Path(stella_jax.__file__).parent / "tiny")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(corpus), "--out", "out", "--model", "here", *SHORT]) == 0
    monkeypatch.chdir("/")
    assert main(["search", str(tmp_path / "out"), "owl", "--prompt", "none", "-k", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["embed", "absent.jsonl", "--out", "out"], "absent.jsonl"),
        (["embed", "{corpus}", "--out", "out", "--dim", "7"], "dim = 7"),
        (["embed", "{corpus}", "--out", "out", "--prompt", "query"], "prompt 'query'"),
        (["embed", "{corpus}", "--out", "out", "--model", "absent"], "absent"),
        (["embed", "{corpus}", "--out", "out", "--max-length", "9999"], "max_seq_length"),
        (["embed", "{corpus}", "--out", "."], "corpus.jsonl"),
        (["embed", "{corpus}", "--out", "out", "--text-field", "body"], "corpus.jsonl: no column 'body'"),
        (["embed", "{corpus}", "--out", "out", "--id-field", "key"], "corpus.jsonl: no column 'key'"),
        (["embed", "{corpus}", "--dry-run", "--all-rows", "--text-field", "body"], "corpus.jsonl: no column 'body'"),
        (["embed", "{corpus}", "--out", "out", "--processes", "2"], "--processes"),
        (["embed", "{corpus}", "--out", "{corpus}/out", *SHORT], "corpus.jsonl/out"),
        (["search", "absent", "query"], "absent"),
        (["demo", "--model", "."], "modules.json"),
        (["embed", "{corpus}", "--out", "out", "--prompt", "s2p_query", "--max-length", "16"], "prompt 'Instruct"),
        (["embed", "absent.jsonl", "--out", "out", "--model", "missing"], "absent.jsonl"),
        (["embed", "{corpus}", "--out", "out", "--ray-address", "auto"], "--ray-address"),
        (["rank", "absent", "query", "--rerank", "missing"], "absent"),
    ],
)
def test_errors(corpus, tmp_path, monkeypatch, capsys, arguments, named, check_message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(corpus=corpus) for argument in arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("stella-jax: error: ")
    assert errors.count("\n") == 1
    check_message(errors, named)
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_rejected_rows(corpus, tmp_path, capsys, check_message):
    """Embedded rows are kept for another run with a higher --max-rejected."""
    short = ("--dim", "32", "--max-length", "8", "--max-rejected", "1%")
    assert main(["embed", str(corpus), "--out", str(tmp_path / "out"), *short]) == 1
    check_message(capsys.readouterr().err, "stella-jax: error: ", "1 of 4 rows", "--out", "--max-rejected")
    assert not (tmp_path / "out" / "_job" / "manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["absent"],
        ["embed"],
        ["embed", "x.jsonl"],
        ["embed", "x.jsonl", "--out", "o", "--dim", "-1"],
        ["embed", "x.jsonl", "--out", "o", "--dtype", "float64"],
        ["embed", "x.jsonl", "--out", "o", "--keep", "a,,b"],
        ["search", "o", "q", "-k", "0"],
        ["demo", "--task", "x"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: stella-jax")


def test_unreadable_file(corpus, tmp_path, capsys, monkeypatch, check_message):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", "secret.jsonl")

    monkeypatch.setattr("stella_jax.cli.commands.run_files", forbidden)
    assert main(["embed", str(corpus), "--out", str(tmp_path / "out"), *SHORT]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "secret.jsonl: ")


def test_compile_cache(monkeypatch, tmp_path):
    import jax

    from stella_jax.devices import _use_compile_cache

    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    _use_compile_cache()
    assert updates == {"jax_persistent_cache_min_compile_time_secs": 0}  # in the user's folder, but of all programs
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    updates.clear()
    _use_compile_cache()
    assert updates == {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    _use_compile_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "home" / "stella-jax" / "xla")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    updates.clear()
    _use_compile_cache()
    assert updates == {}


@pytest.mark.parametrize(("command", "argument"), [("embed", "INPUT"), ("convert", "SRC"), ("train", "RECIPE")])
def test_help_does_not_import_numpy(command, argument):
    script = "import atexit, sys, stella_jax.cli.main; atexit.register(lambda: print('numpy' in sys.modules));"
    script += f"stella_jax.cli.main.main([{command!r}, '--help'])"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.startswith(f"usage: stella-jax {command} ") and argument in output
    assert output.endswith("\nFalse\n")


def test_defaults_are_those_of_the_job(monkeypatch, capsys):
    given = []
    monkeypatch.setattr("stella_jax.cli.commands.COMMANDS", {"embed": given.append})
    assert main(["embed", "a.jsonl", "--out", "out"]) == 0
    run = RunOptions()
    assert (given[0].max_rejected, given[0].grace) == (run.max_rejected, run.stop.grace)
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"rejected rows (default: {run.max_rejected:.0%})" in shown
    assert f"after SIGTERM (default: {run.stop.grace})" in shown


def test_all_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert all(f"\n    {name} " in output for name in ("embed", "verify", "search", "demo", "convert", "train"))


@pytest.mark.parametrize("command", ["convert", "train"])
def test_wrong_usage_of_a_package(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "x", "y", "--bogus"])
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"usage: stella-jax {command} ") and f"\nstella-jax {command}: error: " in errors


def test_convert_and_train_run_their_packages(tmp_path, capsys):
    assert main(["convert", "tiny", str(tmp_path / "flax"), "--dry-run"]) == 0
    command = [sys.executable, "-m", "convert", "tiny", str(tmp_path / "flax"), "--dry-run"]
    assert subprocess.check_output(command, text=True) == capsys.readouterr().out != ""
    assert main(["train", str(tmp_path / "absent.toml")]) == 1
    assert capsys.readouterr().err.startswith("train: error: ")


@pytest.mark.parametrize("run", [*slow(console), shell])
def test_files_named_train_and_convert_are_not_run(tmp_path, run):
    for name in ("train.py", "convert.py"):
        (tmp_path / name).write_text("print('not this one')\n")
    ended = run("train", "absent.toml", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "") and ended.stderr.startswith("train: error: ")
    ended = run("convert", "absent", "out", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "") and ended.stderr.startswith("convert: error: ")


@pytest.mark.slow
def test_train_imports_our_convert(tmp_path):
    (tmp_path / "convert.py").write_text("print('not this one')\n")
    script = "from stella_jax.cli.main import main; main(['train', 'absent.toml']); import train.export"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == ""


@pytest.mark.slow
def test_output_of_a_process(corpus, tmp_path):
    ended = shell("embed", str(corpus), "--out", str(tmp_path / "out"), *SHORT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("\n") == 1
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = shell("search", str(tmp_path / "out"), "owl", "--prompt", "none", env=ascii_only)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u2026" in ended.stdout
    # A reader that closes its end, as `head` does.
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "stella_jax", "search", str(tmp_path / "out"), "owl", "--prompt", "none"]
    left = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (left.returncode, left.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
def test_closed_stdout():
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m stella_jax demo --dim 32 >&-"], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("platform", ["bogus", "rocm"])
def test_unavailable_platform(corpus, tmp_path, platform, check_message):
    process = shell("embed", str(corpus), "--out", str(tmp_path / "out"), env=os.environ | {"JAX_PLATFORMS": platform})
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    check_message(process.stderr.rstrip("\n"), "stella-jax: error: JAX: ", platform, mask=r"\(.*\)")


def test_dry_run_writes_nothing(corpus, tmp_path, capsys):
    command = ["embed", str(corpus), *SHORT, "--part-rows", "3", "--dry-run"]
    assert main([*command, "--tokens-per-second", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows        4, 1 of them invalid"
    assert lines[3] == "parts       2 of at most 3 rows, 3.84e-07 GB of vectors"
    assert lines[4] == "rate        2 tokens/s per chip (given)"
    tokens = int(lines[1].split()[1].rstrip(","))
    assert lines[5] == f"chip-hours  {tokens / 2 / 3600:.3g} ({tokens / 2:.0f} s on one chip)"
    assert lines[-1].split() == ["8", "100.0%", "#" * 40]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_several_heads_are_columns(corpus, tmp_path, capsys, check_message):
    out = str(tmp_path / "out")
    short = ["--max-length", "8", "--max-rejected", "0.25"]
    assert main(["embed", str(corpus), "--out", out, "--dims", "64,32", *short]) == 0
    table = pq.read_table(tmp_path / "out" / "part-000000-0000.parquet")
    assert table.schema.names == ["id", "embedding_64", "embedding_32", "n_tokens", "truncated"]
    for dim in ("32", "64"):
        single = tmp_path / dim
        assert main(["embed", str(corpus), "--out", str(single), "--dim", dim, *short]) == 0
        assert table[f"embedding_{dim}"].equals(pq.read_table(single / "part-000000-0000.parquet")["embedding"])
        assert main(["search", out, "tea", "--dim", dim, "--prompt", "none", "-k", "1"]) == 0
    assert main(["verify", out, "--sample", "3"]) == 0
    assert "; 3 computed again gave the same result" in capsys.readouterr().out
    assert main(["search", out, "tea", "--dim", "128"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), f"{out}: ", "128", "64 and 32")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stella_jax demo", "convert x y", "train x", "train.mine x --out y"])
def test_nothing_is_imported_from_the_working_directory(tmp_path, command):
    """`python -m` searches it first; only the interpreter's own imports before our first line still do."""
    for name in ("jax", "numpy", "orbax", "argparse", "pathlib"):
        (tmp_path / f"{name}.py").write_text("print('not this one')\n")
    ended = subprocess.run([sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, "not this one" in ended.stdout) == (command != "stella_jax demo", False), ended.stderr


def test_checkout_as_working_directory(tmp_path):
    """Without an installation, the commands find their packages in the working directory."""
    checkout = Path(stella_jax.__file__).parents[1]
    command = [sys.executable, "-m", "train", str(tmp_path / "absent.toml")]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("train: error: ")
