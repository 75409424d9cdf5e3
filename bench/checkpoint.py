"""Writes a checkpoint of a published size with random weights, which both this project and its peers load.

    python bench/checkpoint.py DIR [--model stella|qwen2] [--layers N]

transformers reads its config.json without remote code. stella's tokenizer is tiny's; qwen2's is trained on the
tests' corpus with 16,384 tokens and is otherwise as published.
"""

import argparse
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from stella_jax.checkpoint.config import EncoderConfig, Rope
from stella_jax.checkpoint.hub import TINY
from stella_jax.checkpoint.safetensors_writer import SafetensorsWriter, new_header
from stella_jax.models import architecture_of
from stella_jax.models.new import NewConfig
from stella_jax.models.qwen2 import Qwen2Config
from stella_jax.tokenizer.tokenizer import append_end_of_text

STELLA = NewConfig(
    vocab_size=30528,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=8192,
    type_vocab_size=2,
    pad_token_id=0,
    layer_norm_eps=1e-12,
    rope=Rope(320000.0, 2.0 ** (2 / 64)),
)
# stella_en_1.5B_v5 and gte-Qwen2-1.5B-instruct, except for pad_token_id, which is our tokenizer's.
QWEN2 = Qwen2Config(
    vocab_size=151646,
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
    max_position_embeddings=131072,
    pad_token_id=0,
    rms_norm_eps=1e-6,
    rope=Rope(1000000.0),
)
MODELS: dict[str, EncoderConfig] = {"stella": STELLA, "qwen2": QWEN2}
# For trying out a script.
SMALL = replace(STELLA, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
TESTS = Path(__file__).parent.parent / "tests"
END_OF_TEXT = "<|endoftext|>"
MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Dense_1024", "sentence_transformers.models.Dense"),
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `config_of` reads."""
    parser.add_argument("--model", choices=list(MODELS), default="stella", help="size of the random checkpoint")
    parser.add_argument("--layers", type=int, help="number of layers (default: all)")


def config_of(options: argparse.Namespace) -> EncoderConfig:
    """The config of the encoder that the options select."""
    config = MODELS[options.model]
    return replace(config, num_hidden_layers=options.layers) if options.layers else config


def write_checkpoint(directory: Path, config: EncoderConfig = STELLA, seed: int = 0) -> Path:
    """Writes the checkpoint, unless it exists, and returns its directory."""
    if (directory / "modules.json").exists():
        return directory
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    _write_encoder(directory / "model.safetensors", config, rng)
    _write_head(directory / "2_Dense_1024", config.hidden_size, rng)
    _json(directory / "config.json", config.native_json())
    _json(directory / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    pooling = {"embedding_dimension": config.hidden_size, "pooling_mode": "mean", "include_prompt": True}
    _json(directory / "1_Pooling" / "config.json", pooling)
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config_sentence_transformers.json"]
    for name in names:
        shutil.copy(TINY / name, directory / name)
    if isinstance(config, Qwen2Config):
        _write_bytes_tokenizer(directory)
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(MODULES)]
    _json(directory / "modules.json", modules)
    return directory


def _write_encoder(path: Path, config: EncoderConfig, rng: np.random.Generator) -> None:
    architecture, tensors = architecture_of(config), {}
    sizes = architecture.sizes(config)
    for weight in architecture.weights_of(config):
        for i in range(config.num_hidden_layers if weight.stacked else 1):
            tensors[weight.torch.format(i=i)] = weight.flax, weight.torch_shape(sizes)
    header = new_header({name: (np.dtype(np.float32), shape) for name, (_, shape) in tensors.items()})
    with SafetensorsWriter(path, header) as writer:  # one tensor in memory at a time
        for name, (leaf, shape) in tensors.items():
            writer.write(name, _tensor(leaf, shape, rng))


def _tensor(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if path.endswith("norm/scale"):
        return np.ones(shape, np.float32)
    if path.endswith("bias"):
        return np.zeros(shape, np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.02)


def _write_bytes_tokenizer(directory: Path) -> None:
    """Writes a tokenizer with Qwen2's pipeline, newly trained merges, and the end-of-text token in its template."""
    golden = Tokenizer.from_file(str(TESTS / "goldens/stella-qwen2/tokenizer.json"))
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer, trained.decoder = golden.normalizer, golden.pre_tokenizer, golden.decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": [END_OF_TEXT], "initial_alphabet": sorted(alphabet), "show_progress": False}
    with gzip.open(TESTS / "data/corpus_20k.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = (json.loads(line)["text"] for line in lines)
        trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=16384, **options))
    append_end_of_text(trained, END_OF_TEXT)
    trained.save(str(directory / "tokenizer.json"))
    tokens = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    _json(directory / "special_tokens_map.json", tokens)
    _json(directory / "tokenizer_config.json", tokens | {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 512})


def _write_head(folder: Path, hidden: int, rng: np.random.Generator) -> None:
    folder.mkdir()
    dim = min(hidden, 1024)
    weight = rng.standard_normal((dim, hidden), np.float32) * np.float32(0.03)
    tensors = {"linear.weight": weight, "linear.bias": np.zeros(dim, np.float32)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fields = {"in_features": hidden, "out_features": dim, "bias": True}
    _json(folder / "config.json", fields | {"activation_function": "torch.nn.modules.linear.Identity"})


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory to write")
    add_model(parser)
    options = parser.parse_args()
    print(write_checkpoint(options.directory, config_of(options)))


if __name__ == "__main__":
    main()
