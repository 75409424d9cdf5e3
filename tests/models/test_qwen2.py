"""Qwen2 as an encoder: sensitivity of the goldens, meshes and jobs, and unsupported checkpoints."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from corruptions import config, edited, removed
from jobs import write_corpus
from marks import nightly, slow
from paths import GOLDENS
from safetensors.numpy import load_file

import convert.__main__
from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.cli.main import main
from stella_jax.models.qwen2 import QWEN2, Qwen2Config
from stella_jax.sharding import make_mesh

BOUND = 1e-4
NAMES = ("stella-qwen2", "gte-qwen2")


def expected(name: str) -> np.ndarray:
    arrays = load_file(GOLDENS / name / "expected.safetensors")
    return arrays["none/embedding.64" if name == "stella-qwen2" else "none/normalized"]


def texts(name: str) -> list[str]:
    return json.loads((GOLDENS / name / "expected_texts.json").read_text())["texts"]


# Indices of four texts of the golden, among them the empty and the longest one: each length is compiled.
SOME = [1, 2, 6, 7]


def some(name: str) -> list[str]:
    return [texts(name)[i] for i in SOME]


def difference(model: Stella, name: str) -> float:
    return float(np.abs(model.encode(some(name)) - expected(name)[SOME]).max())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name: str) -> None:
    found = Stella.from_pretrained(GOLDENS / name, dtype="float32").encode(texts(name))
    np.testing.assert_allclose(found, expected(name), rtol=0, atol=BOUND / 10)


def causal(q, k, v, lengths):
    """A decoder's attention: no token sees a later one."""
    import jax.numpy as jnp

    del lengths
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def unmasked(q, k, v, lengths):
    from stella_jax.models.attention import attend_at_once

    return attend_at_once(q, k, v, lengths * 0 + k.shape[1])


def interleaved(q, k, v, lengths):
    """Query head n attends to key head n % G."""
    import jax.numpy as jnp

    from stella_jax.models.attention import attend_at_once

    k, v = (jnp.tile(x, (1, 1, q.shape[2] // x.shape[2], 1)) for x in (k, v))
    return attend_at_once(q, k, v, lengths)


@pytest.mark.parametrize("name", [NAMES[0], *nightly(NAMES[1])])
@pytest.mark.parametrize("attend", [causal, unmasked, interleaved])
def test_tolerance_detects_a_wrong_mask_or_grouping(
    name: str, attend: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.clear_caches()
    monkeypatch.setattr("stella_jax.models.layers.attend", attend)
    assert difference(Stella.from_pretrained(GOLDENS / name, dtype="float32"), name) > 1000 * BOUND
    jax.clear_caches()


def test_without_the_end_of_text_token(tmp_path: Path, refused) -> None:
    path = Path(shutil.copytree(GOLDENS / "gte-qwen2", tmp_path / "model"))
    edited("tokenizer_config.json", add_eos_token=...)(path)
    with refused("tokenizer.json"):
        Stella.from_pretrained(path)


@pytest.mark.parametrize("name", NAMES)
def test_tolerance_detects_another_pooling(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDENS / name, tmp_path / "model"))
    other = {"stella-qwen2": "lasttoken", "gte-qwen2": "mean"}[name]
    edited("1_Pooling/config.json", pooling_mode=other)(path)
    assert difference(Stella.from_pretrained(path, dtype="float32"), name) > 1000 * BOUND


def test_end_of_text_is_appended_once_and_survives_truncation() -> None:
    for name in NAMES:
        model = Stella.from_pretrained(GOLDENS / name, dtype="float32")
        ending = model.config.pad_token_id
        for text, count in (("", 1), ("word", 1), ("word<|endoftext|>", 2), ("word " * 500, 1)):
            ids = list(model.tokenize([text])[0].ids)
            assert ids[-1] == ending and ids.count(ending) == count, text
        assert len(model.tokenize(["word " * 500])[0].ids) == model.max_seq_length


# Meshes and jobs


@cache
def model_of(name: str, dtype: str = "float32", mesh: str | None = None) -> Stella:
    return Stella.from_pretrained(GOLDENS / name, dtype=dtype, mesh=mesh)


@pytest.mark.parametrize("name", [NAMES[0], *nightly(NAMES[1])])
@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
def test_same_text_same_bits(name: str, dtype: str) -> None:
    """With any neighbors, and over `data`."""
    all_at_once = model_of(name, dtype).encode(some(name))
    one_by_one = [model_of(name, dtype).encode([text])[0] for text in some(name)]
    np.testing.assert_array_equal(all_at_once, one_by_one)
    np.testing.assert_array_equal(model_of(name, dtype, "data=4").encode(some(name)), all_at_once)


@pytest.mark.parametrize("name", [NAMES[0], *nightly(NAMES[1])])
@pytest.mark.parametrize("mesh", [*nightly("model=2"), "data=4,model=2"])
def test_tensor_parallelism(name: str, mesh: str) -> None:
    found = model_of(name, "float32", mesh).encode(some(name))
    np.testing.assert_allclose(found, model_of(name).encode(some(name)), rtol=0, atol=1e-5)


def test_mesh_must_divide_the_key_heads(refused) -> None:
    with refused("model=3", "num_key_value_heads 2"):
        model_of("gte-qwen2", "float32", "model=3")
    with refused("model=4", "num_attention_heads 6"):
        model_of("gte-qwen2", "float32", "model=4")


def test_each_device_holds_only_its_slice() -> None:
    """With parameters split over `data` as well."""
    checkpoint, mesh = Checkpoint.open(GOLDENS / "stella-qwen2"), make_mesh("data=4,model=2")
    model = checkpoint.load_model([checkpoint.spec.head(None)], mesh, fsdp=True)
    for name, leaf in model.params().items():
        split = 8 if name.removeprefix("encoder/") in QWEN2.specs else 4
        assert leaf.addressable_shards[0].data.size * split == leaf.size, name
    ids, lengths = np.arange(64).reshape(4, 16) + 5, np.array([16, 3, 1, 9])
    with jax.set_mesh(mesh):
        found = jax.jit(model)(ids, lengths)
    np.testing.assert_allclose(found, jax.jit(model_of("stella-qwen2").model)(ids, lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*slow(NAMES[0]), *nightly(NAMES[1])])
def test_job(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.jsonl", some(name)), str(tmp_path / "out")
    command = ["embed", str(corpus), "--out", out, "--model", str(GOLDENS / name), "--dtype", "float32"]
    assert main([*command, "--dry-run"]) == 0
    tokens = [len(each.ids) for each in model_of(name).tokenize(some(name))]
    assert f"{sum(tokens):,}" in capsys.readouterr().out
    assert main(command) == 0
    found = pq.read_table(out)
    np.testing.assert_array_equal(np.stack(found["embedding"].to_pylist()), model_of(name).encode(some(name)))
    assert found["n_tokens"].to_pylist() == tokens
    assert main(["verify", out]) == 0 and main(["verify", out, "--sample", "5", "--input", str(corpus)]) == 0
    capsys.readouterr()
    assert main(["search", out, some(name)[0], "--prompt", "none", "-k", "1"]) == 0
    assert "r0" in capsys.readouterr().out


def test_table_of_a_conversion(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert.__main__.main([str(GOLDENS / "gte-qwen2"), str(tmp_path / "flax"), "--dry-run"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any("model.layers.{0..2}.self_attn.k_proj.weight" in row and "attention/k/kernel" in row for row in rows)
    assert any("lm_head.weight" in row and "passthrough/lm_head/weight" in row for row in rows)
    assert not (tmp_path / "flax").exists()


# Supported and unsupported configs

PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "vocab_size": 151646,
}
# As saved again by transformers 5.
RESAVED = {
    **{key: value for key, value in PUBLISHED.items() if key not in ("auto_map", "rope_theta")},
    "architectures": ["Qwen2Model"],
    "is_causal": False,
    "layer_types": ["full_attention"] * 28,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_window": None,
}


def test_tensors_and_parameters_of_the_published_checkpoint() -> None:
    config = Qwen2Config.from_json(PUBLISHED)
    sizes = QWEN2.sizes(config)
    counts = [(28 if each.stacked else 1, math.prod(each.torch_shape(sizes))) for each in QWEN2.weights_of(config)]
    assert (sum(layers for layers, _ in counts), sum(layers * size for layers, size in counts)) == (338, 1_543_268_864)


def test_both_spellings_are_equivalent() -> None:
    found = Qwen2Config.from_json(PUBLISHED)
    assert (found.head_dim, found.num_key_value_heads, found.pad_token_id) == (128, 2, 151643)
    assert Qwen2Config.from_json(RESAVED) == found
    assert Qwen2Config.from_json(PUBLISHED | {"auto_map": {"AutoModel": "a/b--modeling_qwen.Qwen2Model"}}) == found
    assert Qwen2Config.from_json(found.native_json()) == found
    assert Qwen2Config.from_json(replace(found, num_key_value_heads=4).native_json()).num_key_value_heads == 4


UNSUPPORTED = {
    "decoder": ({"auto_map": None}, "is_causal = None"),
    "causal": ({"is_causal": True}, "is_causal = True"),
    "another class": ({"auto_map": {"AutoModel": "modeling_other.Qwen2Model"}}, "modeling_other"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window"),
    "some layers with a window": ({"layer_types": ["full_attention", "sliding_attention"] * 14}, "layer_types"),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
    "another head_dim": ({"head_dim": 64}, "head_dim"),
    "key heads that do not divide": ({"num_key_value_heads": 5}, "num_key_value_heads"),
    "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act"),
    "epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_configs(name: str, refused) -> None:
    changes, named = UNSUPPORTED[name]
    with refused("config.json", named):
        Qwen2Config.from_json(PUBLISHED | changes)


def test_decoder_without_modules_json(checkpoint_copy: Callable[..., Path], refused) -> None:
    path = checkpoint_copy("gte-qwen2")
    config(is_causal=..., auto_map=...)(path)
    removed("modules.json")(path)
    with refused("config.json"):
        Stella.from_pretrained(path)


def test_missing_head(checkpoint_copy: Callable[..., Path], refused) -> None:
    path = checkpoint_copy("stella-qwen2")
    shutil.rmtree(path / "2_Dense_64")
    with refused("2_Dense_64/config.json"):
        Stella.from_pretrained(path)
