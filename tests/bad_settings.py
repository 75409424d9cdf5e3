"""Damaged, hostile or unsupported settings of a checkpoint, and what the error names for each."""

from checkpoint_files import write_json
from corruptions import (
    Corruption,
    config,
    dense,
    edited,
    extended,
    folder,
    link_loop,
    linked,
    max_seq_length,
    model_max_length,
    modules,
    moved_out,
    pipe,
    pooling,
    removed,
    settings,
    written,
)
from paths import GOLDENS

NESTED = "[" * 100_000 + "]" * 100_000
HUGE = 10**400
RERANKER = (GOLDENS / "gte-reranker/config.json").read_bytes()
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

SETTINGS: dict[str, tuple[Corruption, str]] = {
    # --- config.json
    "config missing": (removed("config.json"), "config.json"),
    "config is a list": (written("config.json", "[1]"), "config.json"),
    "config is not JSON": (written("config.json", "{'a': 1}"), "config.json"),
    "config is empty": (written("config.json", ""), "config.json"),
    "config is nested": (written("config.json", NESTED), "config.json"),
    "config is not text": (written("config.json", b"\xff\xfe\x00\x80abc"), "config.json"),
    "config links to itself": (link_loop, "config.json"),
    "reranker": (written("config.json", RERANKER), "reranker"),
    "other architecture": (config(architectures=["BertModel"]), "BertModel"),
    "no architecture": (config(architectures=...), "config.json"),
    "architectures is a text": (config(architectures="NewModel"), "config.json"),
    "architectures is a number": (config(architectures=5), "config.json"),
    "architectures is an object": (config(architectures={"a": 1}), "config.json"),
    "architectures of lists": (config(architectures=[["NewModel"]]), "config.json"),
    "other model_type": (config(model_type="bert"), "model_type"),
    "model_type is a list": (config(model_type=["new"]), "model_type"),
    "no model_type": (config(model_type=...), "model_type"),
    "hidden_act": (config(hidden_act="relu"), "hidden_act"),
    "layer_norm_type": (config(layer_norm_type="rms_norm"), "layer_norm_type"),
    "position_embedding_type": (config(position_embedding_type="absolute"), "position_embedding_type"),
    "pack_qkv": (config(pack_qkv=False), "pack_qkv"),
    "logn_attention_scale": (config(logn_attention_scale=True), "logn_attention_scale"),
    "is_decoder": (config(is_decoder=True), "is_decoder"),
    "add_cross_attention": (config(add_cross_attention=True), "add_cross_attention"),
    "dynamic rope": (config(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling"),
    "yarn rope": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), "rope_parameters"),
    "mixed_b": (config(rope_scaling={"type": "ntk", "factor": 2.0, "mixed_b": 0.5}), "mixed_b"),
    "rope_scaling is a text": (config(rope_scaling="ntk"), "rope_scaling"),
    "rope_parameters is a list": (config(rope_parameters=[1]), "rope_parameters"),
    "partial rotation": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        "partial_rotary_factor",
    ),
    "rope without theta": (config(rope_theta=...), "rope_theta"),
    "rope theta is huge": (config(rope_theta=HUGE), "rope_theta"),
    "rope theta overflows with its factor": (
        config(rope_theta=1e300, rope_scaling={"type": "ntk", "factor": 1e300}),
        "rope",
    ),
    "rope theta is tiny": (config(rope_theta=1e-320, rope_scaling=None), "rope_theta"),
    "rope factor is tiny": (config(rope_scaling={"type": "ntk", "factor": 1e-300}), "rope_scaling.factor"),
    "rope theta is a text": (config(rope_theta="160000"), "rope_theta"),
    "rope factor is negative": (config(rope_scaling={"type": "ntk", "factor": -2}), "rope_scaling.factor"),
    "eps is NaN": (config(layer_norm_eps=float("nan")), "layer_norm_eps"),
    "eps is infinite": (config(layer_norm_eps=float("inf")), "layer_norm_eps"),
    "eps is zero": (config(layer_norm_eps=0), "layer_norm_eps"),
    "eps is huge": (config(layer_norm_eps=HUGE), "layer_norm_eps"),
    "eps is true": (config(layer_norm_eps=True), "layer_norm_eps"),
    "pad id beyond the vocabulary": (config(pad_token_id=2048), "pad_token_id"),
    "pad id is null": (config(pad_token_id=None), "pad_token_id"),
    "heads do not divide": (config(num_attention_heads=3), "num_attention_heads"),
    "odd head": (config(num_attention_heads=64), "num_attention_heads"),
    **{
        f"{name} = {value!r:.20}": (config(**{name: value}), name)
        for name in SIZES
        for value in (10**12, -1, 0, "64", True, 64.5, None, HUGE)
    },
    "type_vocab_size = 10**12": (config(type_vocab_size=10**12), "type_vocab_size"),
    "max_position_embeddings = 0": (config(max_position_embeddings=0), "max_position_embeddings"),
    "sizes of another model": (config(num_hidden_layers=1000), "missing: "),
    # --- modules.json and what it names
    "no modules.json": (removed("modules.json"), "modules.json"),
    "modules is an object": (written("modules.json", "{}"), "modules.json"),
    "modules is a number": (written("modules.json", "5"), "modules.json"),
    "modules is empty": (written("modules.json", "[]"), "modules.json"),
    "module without a path": (written("modules.json", '[{"type": "a.Transformer"}]'), "modules.json"),
    "module leads up": (modules("Transformer:", "Pooling:../other"), "../other/config.json"),
    "module path with a NUL": (modules("Transformer:", "Pooling:a\0b"), "x00b"),
    "module path with a surrogate": (modules("Transformer:", "Pooling:a\ud800b"), "ud800b"),
    "module path is long": (modules("Transformer:", "Pooling:" + "a" * 5000), "aaa"),
    "unknown module": (modules("Transformer:", "Pooling:1_Pooling", "LayerNorm:2_LayerNorm"), "LayerNorm"),
    "two Dense": (modules("Transformer:", "Pooling:1_Pooling", "Dense:2_Dense_64", "Dense:2_Dense_32"), "modules.json"),
    "wrong order": (modules("Pooling:1_Pooling", "Transformer:"), "modules.json"),
    "no pooling": (modules("Transformer:"), "modules.json"),
    "names a missing head": (
        modules("Transformer:", "Pooling:1_Pooling", "Dense:2_Dense_512"),
        "2_Dense_512/config.json",
    ),
    "pooling config missing": (removed("1_Pooling/config.json"), "1_Pooling/config.json"),
    "max pooling": (pooling(pooling_mode_max_tokens=True), "1_Pooling/config.json"),
    "weighted pooling": (pooling(pooling_mode="weightedmean"), "1_Pooling/config.json"),
    "two poolings": (pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True), "1_Pooling/config.json"),
    "two poolings, newer": (pooling(pooling_mode=["cls", "mean"]), "1_Pooling/config.json"),
    "no pooling mode": (pooling(), "1_Pooling/config.json"),
    "include_prompt false": (pooling(pooling_mode="mean", include_prompt=False), "include_prompt"),
    "pooling of another width": (pooling(pooling_mode="mean", word_embedding_dimension=3), "1_Pooling/config.json"),
    "GELU head": (dense(activation_function="torch.nn.modules.activation.GELU"), "GELU"),
    "residual head": (dense(use_residual=True), "use_residual"),
    "head on token embeddings": (dense(module_input_name="token_embeddings"), "module_input_name"),
    "head of another input": (dense(in_features=32), "in_features"),
    "head of absurd size": (dense(out_features=10**12), "out_features"),
    "head size is a text": (dense(out_features="64"), "out_features"),
    "head size is true": (dense(out_features=True), "out_features"),
    "head without weights": (removed("2_Dense_128/model.safetensors"), "2_Dense_128"),
    "two heads of a size": (edited("2_Dense_48/config.json", out_features=32), "2_Dense_32"),
    # --- settings
    "prompts is a list": (settings(prompts=["a"]), "prompts"),
    "prompt is a number": (settings(prompts={"a": 1}), "prompts"),
    "prompt holds a surrogate": (settings(prompts={"a": "\ud800"}), "config_sentence_transformers.json"),
    "default prompt unknown": (settings(default_prompt_name="q"), "default_prompt_name"),
    "default prompt is a list": (settings(default_prompt_name=["q"]), "default_prompt_name"),
    "similarity unknown": (settings(similarity_fn_name="maxsim"), "maxsim"),
    "similarity is a list": (settings(similarity_fn_name=["dot"]), "dot"),
    "normalizes other embeddings": (
        lambda path: (
            modules("Transformer:", "Pooling:1_Pooling", "Normalize:2_Normalize")(path),
            (path / "2_Normalize").mkdir(),
            write_json(path / "2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        ),
        "2_Normalize/config.json",
    ),
    "lowercases in words": (edited("sentence_bert_config.json", do_lower_case="false"), "do_lower_case"),
    "head links out of the directory": (moved_out("2_Dense_64"), "2_Dense_64/config.json"),
    # --- something else in place of a file
    **{
        f"{file} is {what}": (corruption(file), file)
        for file in ("config_sentence_transformers.json", "sentence_bert_config.json", "modules.json")
        for what, corruption in (
            ("a folder", folder),
            ("a pipe", pipe),
            ("a link to nothing", lambda file: linked(file, "nowhere")),
        )
    },
    "settings are endless zeros": (linked("config.json", "/dev/zero"), "config.json"),
    "settings of a terabyte": (extended("config.json", 2**40), "config.json"),
    "a prompt's name of a megabyte": (settings(default_prompt_name="q" * 10**6), "default_prompt_name"),
    "thousands of modules": (modules(*["LayerNorm:x"] * 10**5), "modules.json"),
    "settings is a list": (written("config_sentence_transformers.json", "[]"), "config_sentence_transformers.json"),
    **{
        f"end-of-text token {token!r:.9}": (
            edited("tokenizer_config.json", add_eos_token=True, eos_token=token),
            "eos_token",
        )
        for token in ("$A", "a b", "", "x:1", "x" * 10**6, None, ["a"])
    },
    "max_seq_length zero": (max_seq_length(0), "max_seq_length"),
    "max_seq_length a text": (edited("sentence_bert_config.json", max_seq_length="64"), "max_seq_length"),
    "max_seq_length NaN": (max_seq_length(float("nan")), "max_seq_length"),
    "max_seq_length with a fraction": (max_seq_length(63.5), "max_seq_length"),
    "model_max_length a text": (model_max_length("64"), "tokenizer_config.json: model_max_length"),
    "max_seq_length two": (max_seq_length(2), "max_seq_length"),
}
