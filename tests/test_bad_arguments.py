"""Wrong arguments of commands and calls: each gets one sentence that names the argument, and no traceback.

A new mistake is a row in one of the two tables. The errors' wording is in messages/test_bad_arguments.ambr.
"""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stella_jax import Stella
from stella_jax.cli.main import main

NUL, LONG, LONE = "a\0b", "x" * 5000, "\udcff"
DIGITS, HUGE, DEEP = "9" * 30, "9" * 5000, "[" * 50_000

RECIPE = """
model = "tiny"
dim = 32
output = "run"
data = { train = "triplets.jsonl", max_length = 8 }
loop = { batch_size = 4, epochs = 1 }
"""

FILES = {
    "recipe.toml": RECIPE,
    "deep.toml": f"model = {DEEP[:30_000]}",
    "dotted.toml": f"a{'.a' * 5000} = 1",
    "arguments.toml": f"{RECIPE}\n[loss.args.x{'.a' * 3000}]\ny = 1",
    "twice.toml": f"[{'a.' * 2000}a]\n[{'a.' * 2000}a]",
    "digits.toml": f"seed = {HUGE}",
    "large.toml": "#" * 2**16,
    "latin.toml": "model = '\udcff'",
    "texts.jsonl": "".join(json.dumps({"id": f"r{i}", "text": f"word {i}"}) + "\n" for i in range(4)),
    "triplets.jsonl": "".join(
        json.dumps({"anchor": f"a {i}", "positive": f"p {i}", "negative": f"n {i}"}) + "\n" for i in range(4)
    ),
}

EMBED = ["embed", "texts.jsonl", "--dim", "32", "--max-length", "8", "--out", "new"]
DISTRIBUTED = [*EMBED, "--executor", "distributed", "--processes", "2", "--process", "0", "--coordinator"]
SEARCH = ["search", "job", "query"]
TRAIN = ["train", "recipe.toml"]
MINE = ["mine", "triplets.jsonl", "--dim", "32", "--max-length", "8", "--out", "new.jsonl"]


def keys(*overrides: str) -> list[str]:
    """A recipe's keys in place of its own."""
    return [*TRAIN, *(word for override in overrides for word in ("--set", override))]


def evaluator(**fields: str) -> list[str]:
    listed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fields.items())
    return keys(f"evaluators = [{{ {listed} }}]")


# A command, and what its error names.
COMMANDS: list[tuple[list[str], str]] = [
    # embed: paths
    (["embed", NUL, "--out", "new"], "a\\x00b"),
    (["embed", f"*{NUL}", "--out", "new"], "a\\x00b"),
    (["embed", "", "--out", "new"], "'': not a path"),
    (["embed", LONG, "--out", "new"], "xxx"),
    (["embed", LONE, "--out", "new"], "udcff"),
    (["embed", "pipe.jsonl", "--out", "new"], "pipe.jsonl"),
    (["embed", "/".join([*["**"] * 100, "no"]), "--out", "new"], "no file matches"),
    (["embed", "gs://", "--out", "new"], "gs://"),
    (["embed", "xx://a", "--out", "new"], "xx://"),
    ([*EMBED, "--out", NUL], "a\\x00b"),
    ([*EMBED, "--out", ""], "'': not a path"),
    ([*EMBED, "--out", LONG], "xxx"),
    ([*EMBED, "--out", "gs://"], "gs://: missing bucket name"),
    ([*EMBED, "--out", "texts.jsonl"], "texts.jsonl"),
    ([*EMBED, "--precision", "int8", "--ranges", NUL], "a\\x00b"),
    ([*EMBED, "--precision", "int8", "--ranges", "pipe.jsonl"], "pipe.jsonl"),
    # embed: the model, and what goes by names
    ([*EMBED, "--model", NUL], "a\\x00b"),
    ([*EMBED, "--model", LONG], "xxx"),
    ([*EMBED, "--model", LONE], "udcff"),
    ([*EMBED, "--model", "org/.."], "org/.."),
    ([*EMBED, "--revision", NUL], "a\\x00b"),
    ([*EMBED, "--prompt", NUL], "a\\x00b"),
    ([*EMBED, "--prompt", ""], "prompt ''"),
    ([*EMBED, "--text-field", LONG], "xxx"),
    ([*EMBED, "--keep", LONE], "U+DCFF"),
    ([*EMBED, "--keep", ",,"], "empty name"),
    ([*EMBED, "--keep", "text,text"], "given twice"),
    # embed: numbers
    ([*EMBED, "--dim", HUGE], "whole number"),
    ([*EMBED, "--dim", "2147483647"], "2147483647"),
    ([*EMBED, "--max-length", "2147483647"], "2147483647"),
    ([*EMBED, "--part-rows", DIGITS], DIGITS),
    ([*EMBED, "--max-rejected", "nan"], "nan"),
    ([*EMBED, "--max-rejected", LONG], "xxx"),
    ([*EMBED, "--mesh", "5"], "mesh '5'"),
    ([*EMBED, "--mesh", f"data={HUGE}"], "mesh 'data=999"),
    ([*EMBED, "--mesh", "data=999999999,model=999999999"], "devices"),
    ([*EMBED, "--dry-run", "--chips", f"v5e:{HUGE}"], "whole number"),
    ([*EMBED, "--dry-run", "--tokens-per-second", "nan"], "nan"),
    # embed: who does the work
    ([*DISTRIBUTED, "host"], "coordinator 'host'"),
    ([*DISTRIBUTED, "host:99999"], "coordinator 'host:99999'"),
    ([*DISTRIBUTED, f"{NUL}:1"], "coordinator 'a\\x00b:1'"),
    # verify, search, demo
    (["verify", NUL], "a\\x00b"),
    (["verify", ""], "'': not a path"),
    (["verify", "gs://"], "gs://: missing bucket name"),
    (["verify", "job", "--sample", "1", "--input", NUL], "a\\x00b"),
    (["verify", "job", "--sample", "1", "--model", NUL], "a\\x00b"),
    (["search", NUL, "query"], "a\\x00b"),
    (["search", "job", ""], "query"),
    (["search", "job", " \n"], "query"),
    (["search", "job", LONE], "U+DCFF"),
    ([*SEARCH, "--prompt", ""], "prompt ''"),
    ([*SEARCH, "--dim", "7"], "7"),
    ([*SEARCH, "--model", NUL], "a\\x00b"),
    (["demo", "--model", NUL], "a\\x00b"),
    (["demo", "--revision", "main"], "main"),
    # convert
    (["convert", "tiny", "gs://x/y"], "gs://x/y: a URL"),
    (["convert", "tiny", "file:///x/y"], "file:///x/y: a URL"),
    (["convert", "tiny", NUL], "a\\x00b"),
    (["convert", "tiny", ""], "'': not a path"),
    (["convert", "tiny", LONG], "xxx"),
    (["convert", "tiny", "x" * 250], "xxx"),  # as are only names of temporary files
    (["convert", "tiny", "texts.jsonl/x"], "texts.jsonl"),
    (["convert", "tiny", "/"], "/: already exists"),
    (["convert", "checkpoint", "checkpoint"], "inside the source checkpoint"),
    (["convert", "checkpoint", "checkpoint/new"], "inside the source checkpoint"),
    (["convert", "link", "checkpoint/new"], "inside the source link"),
    (["convert", NUL, "new"], "a\\x00b"),
    (["convert", "gs://x/y", "new"], "gs://x/y"),
    (["convert", "tiny", NUL, "--verify"], "a\\x00b"),
    (["convert", "tiny", "texts.jsonl", "--verify"], "texts.jsonl"),
    # train: the recipe's file
    (["train", NUL], "a\\x00b"),
    (["train", LONG], "xxx"),
    (["train", "."], "."),
    (["train", "pipe.jsonl"], "pipe.jsonl"),
    (["train", "/dev/zero"], "/dev/zero"),
    (["train", "deep.toml"], "deep.toml"),
    (["train", "dotted.toml"], "dotted.toml"),
    (["train", "arguments.toml"], "arguments.toml"),
    (["train", "twice.toml"], "twice.toml"),
    (["train", "digits.toml"], "digits.toml"),
    (["train", "large.toml"], "large.toml"),
    (["train", "latin.toml"], "latin.toml"),
    # train: keys
    (keys(f"data.train = {DEEP}"), "[[["),
    (keys(f"seed = {HUGE}"), "seed"),
    (keys(f"loss.margin = {'9' * 400}"), "loss.margin"),
    (keys(f"optimizer.args.b1 = {'9' * 400}"), "optimizer.args.b1"),
    (keys("optimizer.learning_rate = 1e308"), "optimizer.learning_rate"),
    (keys("lora.alpha = 1e308"), "lora.alpha"),
    (keys("lora.rank = 2147483647"), "lora.rank"),
    (keys("loop.gradient_accumulation_steps = 2147483648"), "loop.gradient_accumulation_steps"),
    (keys("loop.gradient_accumulation_steps = 5"), "loop.gradient_accumulation_steps = 5"),
    (keys("loop.epochs = 2147483648"), "loop.epochs"),
    (keys(f"loop.epochs = {DIGITS}"), "loop.epochs"),
    (keys(f"loop.max_steps = {DIGITS}"), "loop.max_steps"),
    (keys("loop.batch_size = 2147483648"), "loop.batch_size"),
    (keys(f"loop.save_every = {DIGITS}"), "loop.save_every"),
    (keys(f"loop.keep = {DIGITS}"), "loop.keep"),
    (keys(f"loss.mini_batch = {DIGITS}"), "loss.mini_batch"),
    (keys(f"data.max_length = {DIGITS}"), "data.max_length"),
    (keys("loop.mesh = 5"), "loop.mesh"),
    (keys(f"loop.mesh = data={HUGE}"), "mesh 'data=999"),
    (keys(f"output = {NUL}"), "output"),
    (keys("output = gs://x/y"), "gs://x/y: a URL"),
    (keys(f"output = {LONG}"), "xxx"),
    (keys("output = texts.jsonl"), "texts.jsonl"),
    (keys(f"output = {LONE}"), "U+DCFF"),
    (keys(f"model = {NUL}"), "model"),
    (keys(f"data.train = {NUL}"), "data.train"),
    (keys(f"data.train = {LONG}"), "xxx"),
    (keys(f"data.prompts.anchor = {NUL}"), "data.prompts.anchor"),
    (keys(f"loss.name = {NUL}"), "loss.name"),
    (keys(f"loss.name = {LONG}:f"), "loss.name"),
    (keys(f"loss.name = {'a.' * 3000}a:f"), "loss.name"),
    (keys(f"optimizer.name = {NUL}"), "optimizer.name"),
    (keys("optimizer.freeze = ['[']"), "optimizer.freeze"),
    (keys("a." * 5000 + "a = 1"), "key a"),
    (keys("= 1"), "= 1"),
    (evaluator(name="e", kind="retrieval", path=NUL), "evaluators[0].path"),
    (evaluator(name="e", kind="retrieval", path=LONG), "xxx"),
    (evaluator(name="e", kind="retrieval", path=".", qrels=NUL), "evaluators[0].qrels"),
    ([*TRAIN, "--executor", "distributed", "--coordinator", "x", "--processes", "1", "--process", "0"], "'x'"),
    ([*TRAIN, "--executor", "distributed", "--coordinator", "x:1", "--processes", HUGE, "--process", "0"], "whole"),
    # mine
    (["mine", NUL, "--out", "new.jsonl"], "a\\x00b"),
    ([*MINE, "--out", f"{NUL}.jsonl"], "a\\x00b"),
    ([*MINE, "--out", "gs://x/new.jsonl"], "gs://x/new.jsonl: a URL"),
    ([*MINE, "--out", f"{LONG}.jsonl"], "xxx"),
    ([*MINE, "--work", NUL], "a\\x00b"),
    ([*MINE, "--corpus", NUL], "a\\x00b"),
    ([*MINE, "--anchor-prompt", ""], "prompt ''"),
    ([*MINE, "--anchor-prompt", "none", "--corpus-prompt", ""], "prompt ''"),
    ([*MINE, "--mesh", HUGE], "mesh '999"),
    ([*MINE, "--num-negatives", "0"], "'0'"),
    ([*MINE, "--num-negatives", HUGE], "whole number"),
    ([*MINE, "--range-max", "2147483647"], "candidates"),
    ([*MINE, "--max-length", "2147483647"], "2147483647"),
    ([*MINE, "--max-score", "nan"], "nan"),
    ([*MINE, "--seed", "-1"], "'-1'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run."""
    path = tmp_path_factory.mktemp("here")
    for name, text in FILES.items():
        (path / name).write_text(text, errors="surrogateescape")
    os.mkfifo(path / "pipe.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Stella.from_pretrained("tiny").save_pretrained("checkpoint")
        (path / "link").symlink_to("checkpoint")
        assert main([*EMBED, "--out", "job"]) == 0
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


# Commands whose error has wording of Python or the operating system.
VARYING = [
    ["train", NUL],
    ["train", "digits.toml"],
    ["train", "latin.toml"],
    ["train", "twice.toml"],
    keys(f"loss.name = {LONG}:f"),
    keys(f"loss.name = {'a.' * 3000}a:f"),
]


def label(command: list[str]) -> str:
    """The command, without the options that most rows share."""
    base = next((base for base in (DISTRIBUTED, EMBED, MINE, TRAIN) if command[: len(base)] == base), command[:1])
    words = (word if len(word) < 40 else f"{word[:12]}...{word[-12:]}" for word in command[len(base) :])
    return shlex.join([base[0], *words])


@pytest.mark.parametrize(("command", "named"), COMMANDS, ids=[label(command) for command, _ in COMMANDS])
def test_command(command: list[str], named: str, folder: Path, capsys: pytest.CaptureFixture, check_message):
    before = set(folder.rglob("*"))
    try:
        code = main(command)
    except SystemExit as error:  # wrong usage
        code = error.code
    assert code in (1, 2)
    stderr = capsys.readouterr().err
    usage, _, message = stderr.rpartition("error: ") if code == 2 else stderr.partition("error: ")
    assert usage.startswith(f"usage: stella-jax {command[0]} ") if code == 2 else usage.count(" ") == 1
    assert message.count("\n") == 1
    check_message(message.rstrip("\n"), named, varies=command in VARYING)
    left = set(folder.rglob("*")) - before
    assert all(path.name in ("run", "new") or "new" in path.parts or "_job" in path.parts for path in left), left


ARRAY = np.ones((2, 2), np.float32)
LOADED: Any = Stella.from_pretrained

# A call, and what its error names.
CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    # from_pretrained
    "no path": (lambda _: LOADED(None), "None"),
    "a number as a path": (lambda _: LOADED(5), "5"),
    "an empty path": (lambda _: LOADED(""), "''"),
    "bytes as a path": (lambda _: LOADED(b"tiny"), "tiny"),
    "NUL": (lambda _: LOADED(NUL), "x00"),
    "a long path": (lambda _: LOADED(LONG), "xxx"),
    "a path that is a file": (lambda _: LOADED("texts.jsonl"), "texts.jsonl"),
    "dim is a text": (lambda _: LOADED("tiny", dim="64"), "'64'"),
    "dim is a fraction": (lambda _: LOADED("tiny", dim=64.5), "64.5"),
    "dim is an array": (lambda _: LOADED("tiny", dim=ARRAY), "dim"),
    "dim is a list": (lambda _: LOADED("tiny", dim=[64]), "64"),
    "dim is none": (lambda _: LOADED("tiny", dim=()), "dim"),
    "dim is huge": (lambda _: LOADED("tiny", dim=10**5000), "dim"),
    "dtype is a number": (lambda _: LOADED("tiny", dtype=5), "5"),
    "dtype is an array": (lambda _: LOADED("tiny", dtype=ARRAY), "dtype"),
    "dtype is another": (lambda _: LOADED("tiny", dtype="float64"), "float64"),
    "mesh is a number": (lambda _: LOADED("tiny", mesh=5), "mesh"),
    "mesh is true": (lambda _: LOADED("tiny", mesh=True), "mesh"),
    "mesh has many digits": (lambda _: LOADED("tiny", mesh=f"data={HUGE}"), "mesh 'data=999"),
    "revision of a directory": (lambda _: LOADED("tiny", revision=5), "5"),
    "revision is a number": (lambda _: LOADED("org/name", revision=5), "revision"),
    "truncate_dim is a text": (lambda _: LOADED("tiny", truncate_dim="3"), "truncate_dim"),
    "truncate_dim is an array": (lambda _: LOADED("tiny", truncate_dim=ARRAY), "truncate_dim"),
    "prompts are a number": (lambda _: LOADED("tiny", prompts=5), "prompts"),
    "prompts are a list": (lambda _: LOADED("tiny", prompts=["a"]), "prompts"),
    "prompts are an array": (lambda _: LOADED("tiny", prompts=ARRAY), "prompts"),
    "a prompt is a number": (lambda _: LOADED("tiny", prompts={"a": 5}), "prompts"),
    "a prompt's name is a number": (lambda _: LOADED("tiny", prompts={5: "a"}), "prompts"),
    "default_prompt_name is a number": (lambda _: LOADED("tiny", default_prompt_name=5), "default_prompt_name"),
    "default_prompt_name is a list": (lambda _: LOADED("tiny", default_prompt_name=["a"]), "default_prompt_name"),
    "default_prompt_name is an array": (lambda _: LOADED("tiny", default_prompt_name=ARRAY), "default_prompt_name"),
    "similarity_fn_name is a list": (lambda _: LOADED("tiny", similarity_fn_name=[]), "similarity"),
    "similarity_fn_name is an array": (lambda _: LOADED("tiny", similarity_fn_name=ARRAY), "similarity"),
    "cache_folder is a number": (lambda _: LOADED("org/name", cache_folder=5), "cache_folder"),
    "cache_folder has a NUL": (lambda _: LOADED("org/name", cache_folder=NUL), "cache_folder"),
    "token is a number": (lambda _: LOADED("org/name", token=5), "token"),
    "device is an array": (lambda _: LOADED("tiny", device=ARRAY), "device"),
    # encode
    "no texts": (lambda model: model.encode(None), "None"),
    "texts are a number": (lambda model: model.encode(5), "5"),
    "texts are bytes": (lambda model: model.encode(b"a"), "bytes"),
    "texts are a generator": (lambda model: model.encode(text for text in "ab"), "generator"),
    "texts are a table": (lambda model: model.encode(ARRAY), "sentences[0]"),
    "texts are pairs": (lambda model: model.encode([["a", "b"]]), "sentences[0]"),
    "a text is none": (lambda model: model.encode(["a", None]), "sentences[1]"),
    "a text is a lone surrogate": (lambda model: model.encode(LONE), "U+DCFF"),
    "texts twice": (lambda model: model.encode(["a"], inputs=["a"]), "inputs"),
    "prompt_name is unknown": (lambda model: model.encode("a", "b"), "'b'"),
    "prompt_name is a number": (lambda model: model.encode("a", 5), "5"),
    "prompt_name is an array": (lambda model: model.encode("a", ARRAY), "prompt"),
    "prompt is a number": (lambda model: model.encode("a", prompt=5), "prompt"),
    "prompt is a lone surrogate": (lambda model: model.encode("a", prompt=LONE), "prompt"),
    "batch_size is 0": (lambda model: model.encode("a", batch_size=0), "batch_size"),
    "batch_size is a text": (lambda model: model.encode("a", batch_size="2"), "batch_size"),
    "batch_size is huge": (lambda model: model.encode("a", batch_size=10**30), "batch_size"),
    "batch_size has many digits": (lambda model: model.encode("a", batch_size=10**5000), "batch_size"),
    "batch_size is an array": (lambda model: model.encode("a", batch_size=ARRAY), "batch_size"),
    "show_progress_bar is an array": (lambda model: model.encode("a", show_progress_bar=ARRAY), "show_progress_bar"),
    "output_value is an array": (lambda model: model.encode("a", output_value=ARRAY), "output_value"),
    "output_value is none": (lambda model: model.encode("a", output_value=None), "output_value"),
    "precision is an array": (lambda model: model.encode("a", precision=ARRAY), "precision"),
    "precision is a number": (lambda model: model.encode("a", precision=8), "precision"),
    "normalize_embeddings is an array": (
        lambda model: model.encode("a", normalize_embeddings=ARRAY),
        "normalize_embeddings",
    ),
    "normalize_embeddings is a text": (lambda model: model.encode("a", normalize_embeddings="no"), "'no'"),
    "truncate_dim is too large": (lambda model: model.encode("a", truncate_dim=33), "truncate_dim"),
    "convert_to_numpy is an array": (lambda model: model.encode("a", convert_to_numpy=ARRAY), "convert_to_numpy"),
    "convert_to_tensor is an array": (lambda model: model.encode("a", convert_to_tensor=ARRAY), "convert_to_tensor"),
    "device of encode is an array": (lambda model: model.encode("a", device=ARRAY), "device"),
    "a query's prompt_name": (lambda model: model.encode_query("a", ARRAY), "prompt"),
    # what may be set
    "max_seq_length is a text": (lambda model: setattr(model, "max_seq_length", "8"), "max_seq_length"),
    "max_seq_length is too large": (lambda model: setattr(model, "max_seq_length", 10**9), "max_seq_length"),
    "truncate_dim is 0": (lambda model: setattr(model, "truncate_dim", 0), "truncate_dim"),
    "similarity is unknown": (lambda model: setattr(model, "similarity_fn_name", "near"), "'near'"),
    "similarity is an array": (lambda model: setattr(model, "similarity_fn_name", ARRAY), "similarity"),
    # similarity
    "similarity of texts": (lambda model: model.similarity("a", "b"), "'a'"),
    "similarity of lists of texts": (lambda model: model.similarity(["a"], ["b"]), "'a'"),
    "similarity of none": (lambda model: model.similarity(None, ARRAY), "()"),
    "similarity of objects": (lambda model: model.similarity([{}], ARRAY), "{}"),
    "similarity of rows of two lengths": (lambda model: model.similarity([[1], [1, 2]], ARRAY), "[[1], [1, 2]]"),
    "similarity of shapes": (lambda model: model.similarity(np.ones((2, 3)), ARRAY), "(2, 3)"),
    "similarity of many axes": (lambda model: model.similarity(np.ones((2, 2, 2)), ARRAY), "(2, 2, 2)"),
    "similarity of complex numbers": (lambda model: model.similarity(ARRAY * 1j, ARRAY), "complex"),
    "similarity of pairs of texts": (lambda model: model.similarity_pairwise("a", "b"), "'a'"),
    "similarity of pairs of shapes": (lambda model: model.similarity_pairwise(ARRAY[:1], ARRAY), "(1, 2)"),
    # save_pretrained
    "saved to a URL": (lambda model: model.save_pretrained("gs://x/y"), "gs://x/y: a URL"),
    "saved to NUL": (lambda model: model.save_pretrained(NUL), "x00"),
    "saved to nothing": (lambda model: model.save_pretrained(""), "''"),
    "saved to a number": (lambda model: model.save_pretrained(5), "5"),
    "saved to a long path": (lambda model: model.save_pretrained(LONG), "xxx"),
    "saved over a file": (lambda model: model.save_pretrained("texts.jsonl"), "texts.jsonl: already exists"),
    "saved below a file": (lambda model: model.save_pretrained("texts.jsonl/x"), "texts.jsonl"),
}


@pytest.fixture(scope="module")
def model() -> Stella:
    return Stella.from_pretrained("tiny", dim=32)


@pytest.mark.parametrize("call", CALLS)
def test_call(call: str, model: Stella, folder: Path, refused):
    make, named = CALLS[call]
    before = set(folder.iterdir())
    with refused(named) as error:
        make(model)
    assert "\n" not in str(error.value)
    assert set(folder.iterdir()) == before
