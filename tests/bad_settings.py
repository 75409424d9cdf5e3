"""Settings of a checkpoint that are damaged, hostile or of another kind, and what the error says of each."""

from damage import (
    Damage,
    config,
    dense,
    edited,
    folder,
    grown,
    link_loop,
    linked,
    longest,
    modules,
    moved_out,
    pipe,
    pooling,
    removed,
    settings,
    write_json,
    written,
)
from paths import GOLDENS

NESTED = "[" * 100_000 + "]" * 100_000
HUGE = 10**400
RERANKER = (GOLDENS / "gte-reranker/config.json").read_bytes()
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

SETTINGS: dict[str, tuple[Damage, str]] = {
    # --- config.json
    "config missing": (removed("config.json"), r"config\.json is missing"),
    "config is a list": (written("config.json", "[1]"), r"config\.json must hold a JSON object, not list"),
    "config is no JSON": (written("config.json", "{'a': 1}"), r"config\.json is not JSON"),
    "config is empty": (written("config.json", ""), r"config\.json is not JSON"),
    "config is nested": (written("config.json", NESTED), r"config\.json is not JSON"),
    "config is no text": (written("config.json", b"\xff\xfe\x00\x80abc"), r"config\.json is not JSON"),
    "config links to itself": (link_loop, r"config\.json"),
    "reranker": (
        lambda path: written("config.json", (GOLDENS / "gte-reranker/config.json").read_bytes())(path),
        r"is a reranker",
    ),
    "other architecture": (config(architectures=["BertModel"]), r"architecture 'BertModel' is unknown"),
    "no architecture": (config(architectures=...), r"architecture"),
    "architectures is a text": (config(architectures="NewModel"), r"architecture"),
    "architectures is a number": (config(architectures=5), r"architecture"),
    "architectures is an object": (config(architectures={"a": 1}), r"architecture"),
    "architectures of lists": (config(architectures=[["NewModel"]]), r"architecture"),
    "other model_type": (config(model_type="bert"), r"model_type 'bert' is unknown"),
    "model_type is a list": (config(model_type=["new"]), r"model_type \['new'\] is unknown"),
    "no model_type": (config(model_type=...), r"model_type None is unknown"),
    "hidden_act": (config(hidden_act="relu"), r"hidden_act = 'relu' is not implemented"),
    "layer_norm_type": (config(layer_norm_type="rms_norm"), r"layer_norm_type = 'rms_norm' is not implemented"),
    "position_embedding_type": (config(position_embedding_type="absolute"), r"position_embedding_type = 'absolute'"),
    "pack_qkv": (config(pack_qkv=False), r"pack_qkv = False is not implemented"),
    "logn_attention_scale": (config(logn_attention_scale=True), r"logn_attention_scale = True is not implemented"),
    "is_decoder": (config(is_decoder=True), r"is_decoder = True is not implemented"),
    "add_cross_attention": (config(add_cross_attention=True), r"add_cross_attention = True is not implemented"),
    "dynamic rope": (config(rope_scaling={"type": "dynamic", "factor": 2.0}), r"rope_scaling .*dynamic"),
    "yarn rope": (
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        r"rope_parameters .*yarn",
    ),
    "mixed_b": (
        config(rope_scaling={"type": "ntk", "factor": 2.0, "mixed_b": 0.5}),
        r"mixed_b = 0\.5 is not implemented",
    ),
    "rope_scaling is a text": (config(rope_scaling="ntk"), r"rope_scaling = 'ntk' is not implemented"),
    "rope_parameters is a list": (config(rope_parameters=[1]), r"rope_parameters = \[1\] is not implemented"),
    "partial rotation": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        r"partial_rotary_factor",
    ),
    "rope without theta": (config(rope_theta=...), r"rope_theta = None must be"),
    "rope theta is huge": (config(rope_theta=HUGE), r"rope_theta"),
    "rope theta overflows with its factor": (
        config(rope_theta=1e300, rope_scaling={"type": "ntk", "factor": 1e300}),
        r"rope",
    ),
    "rope theta is tiny": (config(rope_theta=1e-320, rope_scaling=None), r"rope_theta"),
    "rope factor is tiny": (config(rope_scaling={"type": "ntk", "factor": 1e-300}), r"rope_scaling\.factor"),
    "rope theta is a text": (config(rope_theta="160000"), r"rope_theta = '160000' must be"),
    "rope factor is negative": (
        config(rope_scaling={"type": "ntk", "factor": -2}),
        r"rope_scaling\.factor = -2 must be",
    ),
    "eps is NaN": (config(layer_norm_eps=float("nan")), r"layer_norm_eps = nan must be"),
    "eps is infinite": (config(layer_norm_eps=float("inf")), r"layer_norm_eps = inf must be"),
    "eps is zero": (config(layer_norm_eps=0), r"layer_norm_eps = 0 must be"),
    "eps is huge": (config(layer_norm_eps=HUGE), r"layer_norm_eps"),
    "eps is true": (config(layer_norm_eps=True), r"layer_norm_eps = True must be"),
    "pad id beyond the vocabulary": (config(pad_token_id=2048), r"pad_token_id = 2048 must be"),
    "pad id is null": (config(pad_token_id=None), r"pad_token_id = None must be"),
    "heads do not divide": (config(num_attention_heads=3), r"hidden_size 64 over num_attention_heads 3"),
    "odd head": (config(num_attention_heads=64), r"even whole number"),
    **{
        f"{name} = {value!r:.20}": (config(**{name: value}), rf"{name} = .* must be a whole number from")
        for name in SIZES
        for value in (10**12, -1, 0, "64", True, 64.5, None, HUGE)
    },
    "type_vocab_size = 10**12": (config(type_vocab_size=10**12), r"type_vocab_size = 10+ must be"),
    "max_position_embeddings = 0": (config(max_position_embeddings=0), r"max_position_embeddings = 0 must be"),
    "sizes of another model": (config(num_hidden_layers=1000), r"(?s)missing: .*and \d+ more"),
    # --- modules.json and what it names
    "no modules.json": (removed("modules.json"), r"modules\.json is missing"),
    "modules is an object": (written("modules.json", "{}"), r"modules\.json"),
    "modules is a number": (written("modules.json", "5"), r"modules\.json is not a list of modules"),
    "modules is empty": (written("modules.json", "[]"), r"modules\.json lists none"),
    "module without a path": (written("modules.json", '[{"type": "a.Transformer"}]'), r"modules\.json is not a list"),
    "module leads up": (modules("Transformer:", "Pooling:../other"), r"'\.\./other/config\.json' leads out of"),
    "module path with a NUL": (modules("Transformer:", "Pooling:a\0b"), r"cannot be read as a file"),
    "module path with a surrogate": (modules("Transformer:", "Pooling:a\ud800b"), r"cannot be read as a file"),
    "module path is long": (modules("Transformer:", "Pooling:" + "a" * 5000), r"cannot be read as a file"),
    "unknown module": (
        modules("Transformer:", "Pooling:1_Pooling", "LayerNorm:2_LayerNorm"),
        r"modules\.json lists .*LayerNorm",
    ),
    "two Dense": (
        modules("Transformer:", "Pooling:1_Pooling", "Dense:2_Dense_64", "Dense:2_Dense_32"),
        r"modules\.json lists Transformer, Pooling, Dense and Dense;",
    ),
    "wrong order": (modules("Pooling:1_Pooling", "Transformer:"), r"modules\.json lists Pooling and Transformer;"),
    "no pooling": (modules("Transformer:"), r"modules\.json lists Transformer;"),
    "names a head that is not there": (
        modules("Transformer:", "Pooling:1_Pooling", "Dense:2_Dense_512"),
        r"2_Dense_512/config\.json is missing; the head folders there are: 2_Dense_128, 2_Dense_32, 2_Dense_48 and",
    ),
    "pooling config missing": (removed("1_Pooling/config.json"), r"1_Pooling/config\.json is missing"),
    "max pooling": (
        pooling(pooling_mode_max_tokens=True),
        r"1_Pooling/config\.json: pooling 'pooling_mode_max_tokens'",
    ),
    "weighted pooling": (pooling(pooling_mode="weightedmean"), r"pooling 'weightedmean' is not implemented"),
    "two poolings": (
        pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),
        r"pooling 'pooling_mode_cls_token \+ pooling_mode_mean_tokens' is not implemented",
    ),
    "two poolings, newer": (pooling(pooling_mode=["cls", "mean"]), r"pooling \['cls', 'mean'\] is not implemented"),
    "no pooling mode": (pooling(), r"1_Pooling/config\.json: pooling '' is not implemented"),
    "include_prompt false": (pooling(pooling_mode="mean", include_prompt=False), r"include_prompt = False"),
    "pooling of another width": (pooling(pooling_mode="mean", word_embedding_dimension=3), r"dimension 3 is not"),
    "GELU head": (dense(activation_function="torch.nn.modules.activation.GELU"), r"2_Dense_64/.* 'GELU' is not"),
    "residual head": (dense(use_residual=True), r"use_residual is not implemented"),
    "head on token embeddings": (
        dense(module_input_name="token_embeddings"),
        r"module_input_name = 'token_embeddings'",
    ),
    "head of another input": (dense(in_features=32), r"in_features 32 is not hidden_size 64"),
    "head of absurd size": (dense(out_features=10**12), r"out_features = 10+ must be"),
    "head size is a text": (dense(out_features="64"), r"out_features = '64' must be"),
    "head size is true": (dense(out_features=True), r"out_features = True must be"),
    "head without weights": (removed("2_Dense_128/model.safetensors"), r"2_Dense_128 has no model\.safetensors"),
    "two heads of a size": (edited("2_Dense_48/config.json", out_features=32), r"2_Dense_32 and 2_Dense_48 are both"),
    # --- settings
    "prompts is a list": (
        settings(prompts=["a"]),
        r"prompts must map names to texts",
    ),
    "prompt is a number": (settings(prompts={"a": 1}), r"prompts must map"),
    "prompt holds a surrogate": (
        settings(prompts={"a": "\ud800"}),
        r"lone surrogate",
    ),
    "default prompt unknown": (
        settings(default_prompt_name="q"),
        r"default_prompt_name 'q' is not one of its prompts \(s2p_query and s2s_query\)",
    ),
    "default prompt is a list": (
        settings(default_prompt_name=["q"]),
        r"default_prompt_name",
    ),
    "similarity unknown": (
        settings(similarity_fn_name="maxsim"),
        r"'maxsim' is unknown",
    ),
    "similarity is a list": (settings(similarity_fn_name=["dot"]), r"is unknown"),
    "normalizes something else": (
        lambda path: (
            modules("Transformer:", "Pooling:1_Pooling", "Normalize:2_Normalize")(path),
            (path / "2_Normalize").mkdir(),
            write_json(path / "2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        ),
        r"2_Normalize/config\.json: module_input_name = 'token_embeddings' is not implemented",
    ),
    "lowercases in words": (
        edited("sentence_bert_config.json", do_lower_case="false"),
        r"sentence_bert_config\.json: do_lower_case = 'false' must be true or false",
    ),
    "head links out of the directory": (moved_out("2_Dense_64"), r"'2_Dense_64/config\.json' leads out of"),
    # --- what stands in place of a file
    **{
        f"{file} is {what}": (damage(file), rf"{file.replace('.', '[.]')}: {error}, not a file")
        for file in ("config_sentence_transformers.json", "sentence_bert_config.json", "modules.json")
        for what, damage, error in (
            ("a folder", folder, "a folder"),
            ("a pipe", pipe, "a pipe or a device"),
            ("a link to nothing", lambda file: linked(file, "nowhere"), "a link to nothing"),
        )
    },
    "settings are endless zeros": (linked("config.json", "/dev/zero"), r"'config\.json' leads out of"),
    "settings of a terabyte": (grown("config.json", 2**40), r"config\.json is larger than"),
    "a prompt's name of a megabyte": (
        settings(default_prompt_name="q" * 10**6),
        r"default_prompt_name 'q+\.\.\. is not one of its prompts",
    ),
    "thousands of modules": (modules(*["LayerNorm:x"] * 10**5), r"modules\.json lists .* and 99980 more"),
    "settings is a list": (written("config_sentence_transformers.json", "[]"), r"must hold a JSON object"),
    **{
        f"end-of-text token {token!r:.9}": (
            edited("tokenizer_config.json", add_eos_token=True, eos_token=token),
            r"tokenizer_config\.json: eos_token = .* must be a word",
        )
        for token in ("$A", "a b", "", "x:1", "x" * 10**6, None, ["a"])
    },
    "max_seq_length zero": (longest(0), r"max_seq_length = 0 must be"),
    "max_seq_length a text": (
        edited("sentence_bert_config.json", max_seq_length="64"),
        r"max_seq_length = '64' must be",
    ),
    "max_seq_length NaN": (longest(float("nan")), r"max_seq_length = nan"),
    "max_seq_length two": (longest(2), r"max_seq_length 2 leaves no room"),
}
