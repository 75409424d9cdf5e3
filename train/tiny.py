"""Make the embedded checkpoint: a tokenizer and random weights for the JSON files that stand in its directory.

    python -m train.tiny corpus.jsonl.gz --out stella_jax/tiny

Nothing is learned but the vocabulary. Common tokens carry almost nothing and the layers change their input little, so
the mean over the tokens is a bag of rare words: enough for a demonstration to find a text by the words in it.
"""

import argparse
import collections
import gzip
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 2026
WEIGHT_STD, BIAS_STD = 0.03, 0.003
COMMON_SHARE = 5e-4  # a token with this share of the corpus keeps half of its own direction
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_texts(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Uncased WordPiece as BERT has it, with [PAD] at 0."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIAL))
    # The trainer finds the same tokens each time but numbers ties at random.
    vocab = SPECIAL + sorted(tokenizer.get_vocab().keys() - set(SPECIAL))
    if len(vocab) != vocab_size:
        raise SystemExit(f"train.tiny: the corpus gives {len(vocab)} tokens of {vocab_size}; add more text")
    tokenizer.model = models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def token_shares(tokenizer: Tokenizer, texts: list[str], prompts: list[str]) -> np.ndarray:
    """[vocab] the share of each token in the corpus, as if each text were asked for once with each prompt."""
    counts = collections.Counter(i for encoding in tokenizer.encode_batch(texts) for i in encoding.ids)
    for prompt in prompts:
        counts.update({i: len(texts) for i in tokenizer.encode(prompt).ids})
    return np.array([counts[i] for i in range(tokenizer.get_vocab_size())]) / counts.total()


def common_direction(hidden: int) -> np.ndarray:
    """[hidden] +1, -1, ...: what common tokens share; of mean 0, so that LayerNorm keeps it."""
    return np.where(np.arange(hidden) % 2, -1.0, 1.0)


def blind_to_common(weight: np.ndarray) -> np.ndarray:
    """[out, hidden] `weight` without its response to the common direction: no offset that all texts would share."""
    common = common_direction(weight.shape[1])
    return weight - np.outer(weight @ common, common) / len(common)


def word_embeddings(rng: np.random.Generator, shares: np.ndarray, hidden: int) -> np.ndarray:
    """[vocab, hidden] a direction of its own for a rare token, turned to the common one the more frequent it is.

    LayerNorm makes all vectors equally long, so that a token can weigh less only by saying less. The weights are those
    of smooth inverse frequency (Arora et al. 2017).
    """
    own = (COMMON_SHARE / (COMMON_SHARE + shares))[:, None]
    return own * rng.standard_normal((len(shares), hidden)) + np.sqrt(1 - own**2) * common_direction(hidden)


def encoder_tensors(rng: np.random.Generator, config: dict, shares: np.ndarray) -> dict[str, np.ndarray]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]

    def normal(std: float, *shape: int) -> np.ndarray:
        return rng.normal(0.0, std, shape)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": np.ones(hidden), f"{name}.bias": np.zeros(hidden)}

    tensors = {
        "embeddings.word_embeddings.weight": word_embeddings(rng, shares, hidden),
        "embeddings.token_type_embeddings.weight": normal(BIAS_STD, config["type_vocab_size"], hidden),
        **norm("embeddings.LayerNorm"),
    }
    for layer in (f"encoder.layer.{i}" for i in range(config["num_hidden_layers"])):
        tensors |= {
            f"{layer}.attention.qkv_proj.weight": blind_to_common(normal(WEIGHT_STD, 3 * hidden, hidden)),
            f"{layer}.attention.qkv_proj.bias": normal(BIAS_STD, 3 * hidden),
            f"{layer}.attention.o_proj.weight": normal(WEIGHT_STD, hidden, hidden),
            f"{layer}.attention.o_proj.bias": normal(BIAS_STD, hidden),
            f"{layer}.mlp.up_gate_proj.weight": blind_to_common(normal(WEIGHT_STD, 2 * intermediate, hidden)),
            f"{layer}.mlp.down_proj.weight": normal(WEIGHT_STD, hidden, intermediate),
            f"{layer}.mlp.down_proj.bias": normal(BIAS_STD, hidden),
            **norm(f"{layer}.attn_ln"),
            **norm(f"{layer}.mlp_ln"),
        }
    return {f"new.{name}": tensor.astype(config["torch_dtype"]) for name, tensor in tensors.items()}


def head_tensors(rng: np.random.Generator, config: dict) -> dict[str, np.ndarray]:
    """Rows of a random rotation, another one for each head: no head is a prefix of another."""
    hidden, dim = config["in_features"], config["out_features"]
    rotation = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0]
    return {
        "linear.weight": blind_to_common(rotation[:dim]).astype(np.float32),
        "linear.bias": np.zeros(dim, np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.tiny", description="Make the embedded checkpoint.")
    parser.add_argument("corpus", nargs="+", type=Path, help='JSON lines with a "text", .jsonl or .jsonl.gz')
    parser.add_argument("--out", required=True, type=Path, help="directory with the checkpoint's JSON files")
    arguments = parser.parse_args()
    out, texts = arguments.out, [text for path in arguments.corpus for text in read_texts(path)]
    config, prompts = read_json(out / "config.json"), read_json(out / "config_sentence_transformers.json")["prompts"]

    tokenizer = train_tokenizer(texts, config["vocab_size"])
    tokenizer.save(str(out / "tokenizer.json"))
    vocab = [f"{tokenizer.id_to_token(i)}\n" for i in range(config["vocab_size"])]
    (out / "vocab.txt").write_text("".join(vocab), encoding="utf-8")

    rng = np.random.default_rng(SEED)
    tensors = encoder_tensors(rng, config, token_shares(tokenizer, texts, list(prompts.values())))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for head in sorted(out.glob("2_Dense_*")):
        save_file(
            head_tensors(rng, read_json(head / "config.json")), head / "model.safetensors", metadata={"format": "pt"}
        )


if __name__ == "__main__":
    main()
