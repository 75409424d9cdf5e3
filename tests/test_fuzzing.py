"""Arbitrary contents in a checkpoint's files: it loads or is refused in one sentence, and quickly."""

import json
import shutil
import struct
import time
from pathlib import Path

import pytest
from corruptions import WEIGHTS, assert_readable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import StellaError
from stella_jax.checkpoint.checkpoint import Checkpoint

FUZZED = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense_64/config.json",
    "tokenizer_config.json",
)
ODD = ("", "..", "/", "\x1b[2J\n", 10**400, 1e308)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["", "..", "/", 10**400, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
few = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(path: Path) -> None:
    """Loads the checkpoint or expects a readable error, within 20 seconds."""
    start = time.monotonic()
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.tokenizer().encode(["a text"])
    except StellaError as error:
        assert_readable(str(error))
    assert time.monotonic() - start < 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A valid checkpoint; its files are corrupted one at a time and restored."""
    return Path(shutil.copytree(GOLDENS / "stella", tmp_path_factory.mktemp("fuzz") / "stella"))


def with_content(path: Path, content: bytes) -> None:
    original = path.read_bytes()
    try:
        path.write_bytes(content)
        load(path.parent if path.parent.name == "stella" else path.parent.parent)
    finally:
        path.write_bytes(original)


@pytest.mark.slow
@few
@given(file=st.sampled_from(FUZZED), data=st.data())
def test_any_value_of_any_field(folder, file, data):
    value = json.loads((folder / file).read_text())
    target = data.draw(st.sampled_from(value)) if isinstance(value, list) else value
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(VALUES)
    with_content(folder / file, json.dumps(value).encode())


@few
@given(file=st.sampled_from(FUZZED), position=st.floats(0, 1, exclude_max=True), replaced=st.binary(max_size=3))
def test_any_bytes_in_a_json_file(folder, file, position, replaced):
    content = (folder / file).read_bytes()
    at = int(position * len(content))
    with_content(folder / file, content[:at] + replaced + content[at + len(replaced) :])


@few
@given(position=st.floats(0, 1, exclude_max=True), replaced=st.binary(min_size=1, max_size=3))
def test_any_bytes_in_a_safetensors_header(folder, position, replaced):
    file = folder / "2_Dense_64" / WEIGHTS
    content = file.read_bytes()
    at = int(position * (8 + struct.unpack("<Q", content[:8])[0]))
    with_content(file, content[:at] + replaced + content[at + len(replaced) :])


@few
@given(header=st.dictionaries(st.sampled_from(["linear.weight", "linear.bias", "__metadata__"]), VALUES))
def test_any_safetensors_header(folder, header):
    text = json.dumps(header).encode()
    with_content(folder / "2_Dense_64" / WEIGHTS, struct.pack("<Q", len(text)) + text + bytes(64))
