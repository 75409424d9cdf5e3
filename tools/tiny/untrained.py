"""An untrained checkpoint: a tokenizer trained on texts, and random weights for given JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stella_jax.errors import StellaError

SEED = 2026
STD = 0.02
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tokenizer(directory: Path, texts: Sequence[str]) -> None:
    """Trains a tokenizer with the vocabulary size of the directory's config.json, and writes it there.

    Raises:
      StellaError: the texts have too few tokens.
    """
    vocab_size = _read_json(directory / "config.json")["vocab_size"]
    tokenizer = train_tokenizer(texts, vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_weights(directory: Path) -> None:
    """Writes random float32 weights of the encoder and of all heads that have a config.json in the directory."""
    rng = np.random.default_rng(SEED)
    _save(directory, encoder_tensors(rng, _read_json(directory / "config.json")))
    for head in sorted(directory.glob("2_Dense_*")):
        _save(head, head_tensors(rng, _read_json(head / "config.json")))


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Uncased WordPiece with [PAD] at 0; unlike BERT's, tokens inside a word have no prefix."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="")
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False, continuing_subword_prefix=""
        ),
    )
    # The trainer is deterministic except for the order of ties.
    vocab = SPECIAL + sorted(tokenizer.get_vocab().keys() - set(SPECIAL))
    if len(vocab) != vocab_size:
        raise StellaError(f"texts: only {len(vocab)} of {vocab_size} tokens found; add more text.")
    tokenizer.model = models.WordPiece(
        {token: i for i, token in enumerate(vocab)}, unk_token="[UNK]", continuing_subword_prefix=""
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def encoder_tensors(rng: np.random.Generator, config: dict) -> dict[str, np.ndarray]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, STD, shape)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": np.ones(hidden), f"{name}.bias": np.zeros(hidden)}

    tensors = {
        "embeddings.word_embeddings.weight": normal(config["vocab_size"], hidden),
        "embeddings.token_type_embeddings.weight": normal(config["type_vocab_size"], hidden),
        **norm("embeddings.LayerNorm"),
    }
    for layer in (f"encoder.layer.{i}" for i in range(config["num_hidden_layers"])):
        tensors |= {
            f"{layer}.attention.qkv_proj.weight": normal(3 * hidden, hidden),
            f"{layer}.attention.qkv_proj.bias": np.zeros(3 * hidden),
            f"{layer}.attention.o_proj.weight": normal(hidden, hidden),
            f"{layer}.attention.o_proj.bias": np.zeros(hidden),
            f"{layer}.mlp.up_gate_proj.weight": normal(2 * intermediate, hidden),
            f"{layer}.mlp.down_proj.weight": normal(hidden, intermediate),
            f"{layer}.mlp.down_proj.bias": np.zeros(hidden),
            **norm(f"{layer}.attn_ln"),
            **norm(f"{layer}.mlp_ln"),
        }
    return {f"new.{name}": tensor for name, tensor in tensors.items()}


def head_tensors(rng: np.random.Generator, config: dict) -> dict[str, np.ndarray]:
    """Rows of a random orthogonal matrix, a new one for each head, so that no head is a prefix of another."""
    hidden, dim = config["in_features"], config["out_features"]
    rotation = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0]
    return {"linear.weight": rotation[:dim], "linear.bias": np.zeros(dim)}


def _save(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
