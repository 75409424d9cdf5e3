"""The prompt of queries, and writing it for programs that use only the name `query`."""

import json
from pathlib import Path

import pytest
from corruptions import settings

from convert import to_torch
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.prompts import query_prompt_name, with_query_prompt

FILE = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        ({"query": "q: ", "s2p_query": "s: "}, "query"),
        ({"query": "", "s2p_query": "s: "}, "s2p_query"),
        ({"query": None, "s2p_query": "s: "}, "s2p_query"),
        ({"s2p_query": "s: ", "s2s_query": "t: "}, "s2p_query"),
        ({"s2p_query": "", "s2s_query": "t: "}, None),
        ({}, None),
    ],
)
def test_query_prompt_is_named_query_as_well(prompts, name):
    before = {"similarity_fn_name": "dot", "prompts": prompts, "other": [1]}
    kept = json.dumps(before)
    after = with_query_prompt(before)
    assert query_prompt_name(prompts) == name
    assert after == before | {"prompts": prompts | ({"query": prompts[name]} if name else {})}
    assert json.dumps(before) == kept
    assert with_query_prompt(after) == after


@pytest.mark.parametrize("fields", [{}, {"prompts": None}])
def test_no_prompts_stay_none(fields):
    assert with_query_prompt(fields) == fields


@pytest.mark.parametrize("prompts", [{"query": "q: ", "s2p_query": "s: "}, {"s2s_query": "s: "}, {}, None])
def test_settings_without_a_query_prompt_keep_their_bytes(checkpoint_copy, tmp_path: Path, prompts):
    source = checkpoint_copy()
    settings(prompts=prompts)(source)
    to_torch(Checkpoint.open(source), tmp_path / "native", native=True)
    assert (tmp_path / "native" / FILE).read_bytes() == (source / FILE).read_bytes()


def test_checkpoint_without_settings(checkpoint_copy, tmp_path: Path):
    source = checkpoint_copy()
    (source / FILE).unlink()
    to_torch(Checkpoint.open(source), tmp_path / "native", native=True)
    assert not (tmp_path / "native" / FILE).exists()


def test_query_prompt_is_written_as_text(checkpoint_copy, tmp_path: Path):
    source = checkpoint_copy()
    settings(prompts={"s2p_query": "Frage 北京: "})(source)
    to_torch(Checkpoint.open(source), tmp_path / "native", native=True)
    assert Checkpoint.open(tmp_path / "native").spec.prompts["query"] == "Frage 北京: "
