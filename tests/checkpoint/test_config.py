"""config.json in its old and new spellings, as published."""

import dataclasses

import pytest
from published import PUBLISHED, published, read_config

from stella_jax.checkpoint.config import Rope
from stella_jax.models.new import NewConfig


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    fields, rope = published(name), PUBLISHED[name][1]
    config = read_config(fields)
    assert config.rope == rope
    assert config.head_dim == 64
    for field in dataclasses.fields(NewConfig):
        if field.name != "rope":
            assert getattr(config, field.name) == fields[field.name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_native_config_is_equivalent(name):
    config = read_config(published(name))
    assert read_config(config.native_json()) == config


@pytest.mark.parametrize(
    ("parameters", "rope"),
    [
        ({"rope_type": "linear", "rope_theta": 320000.0, "factor": 1.5}, Rope(320000.0, 1.5)),
        ({"rope_type": "default", "rope_theta": 1e4}, Rope(1e4)),
        ({"rope_theta": 1e4, "partial_rotary_factor": 1.0}, Rope(1e4)),
    ],
)
def test_rope_parameters_take_precedence(parameters, rope):
    fields = published("stella_en_400M_v5") | {"rope_parameters": parameters}
    assert read_config(fields).rope == rope


@pytest.mark.parametrize("field", ["layer_norm_eps", "pad_token_id", "hidden_act", "pack_qkv", "rope_scaling"])
def test_optional_fields_default_to_the_published_values(field):
    fields = published("snowflake-arctic-embed-m-v2.0") | {"pad_token_id": 0}
    expected = read_config(fields)
    del fields[field]
    assert read_config(fields) == expected


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "type_vocab_size", "max_position_embeddings", "rope_theta"]
)
def test_missing_required_fields(field, refused):
    fields = published("stella_en_400M_v5")
    del fields[field]
    with refused("config.json", field):
        read_config(fields)


def test_config_is_frozen_and_hashable():
    config = read_config(published("stella_en_400M_v5"))
    assert hash(config) == hash(read_config(published("stella_en_400M_v5")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 5  # type: ignore[misc]
