"""config.json and generation_config.json: published ones load, a key that changes the meaning is used or refused by name."""

import json
from pathlib import Path

import pytest
from fixture_folders import TINY, TINY_V1_0, random_params

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.formats import huggingface_keys

SIZES = {"d_ff": 24, "d_kv": 8, "d_model": 16, "num_heads": 2, "vocab_size": 48}
V1_1 = {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 2, "tie_word_embeddings": False}
TASKS = {
    "summarization": {
        "early_stopping": True,
        "length_penalty": 2.0,
        "max_length": 200,
        "min_length": 30,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "prefix": "summarize: ",
    }
}
IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
COMMON = {
    "dropout_rate": 0.1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "relative_attention_num_buckets": 32,
}
# the keys of published config.json files, with the shapes of the tests
PUBLISHED = {
    "t5-small": SIZES
    | IDS
    | COMMON
    | {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "n_positions": 512,
        "num_layers": 2,
        "output_past": True,
        "task_specific_params": TASKS,
    },
    "t5-11b": SIZES
    | IDS
    | COMMON
    | {"architectures": ["T5WithLMHeadModel"], "model_type": "t5", "num_layers": 2, "use_cache": True, "task_specific_params": TASKS},
    "t5-v1_1-base": SIZES
    | IDS
    | COMMON
    | V1_1
    | {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "output_past": True, "torch_dtype": "float32"},
    "t5-base-lm-adapt": SIZES
    | IDS
    | COMMON
    | V1_1
    | {"model_type": "t5", "output_past": True, "transformers_version": "4.12.0.dev0", "use_cache": True},
    "flan-t5-base": SIZES
    | IDS
    | COMMON
    | V1_1
    | {
        "model_type": "t5",
        "n_positions": 512,
        "output_past": True,
        "task_specific_params": TASKS,
        "torch_dtype": "float32",
        "transformers_version": "4.23.1",
        "relative_attention_max_distance": 128,
        "use_cache": True,
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
    },
    "mt5-small": SIZES
    | IDS
    | COMMON
    | V1_1
    | {
        "_name_or_path": "checkpoints/mt5-small",
        "architectures": ["MT5ForConditionalGeneration"],
        "model_type": "mt5",
        "tokenizer_class": "T5Tokenizer",
        "transformers_version": "4.10.0.dev0",
        "use_cache": True,
        "output_past": True,
    },
    "byt5-small": SIZES
    | IDS
    | COMMON
    | V1_1
    | {
        "_name_or_path": "checkpoints/byt5-small",
        "gradient_checkpointing": False,
        "model_type": "t5",
        "tokenizer_class": "ByT5Tokenizer",
    },
    "transformers 5": SIZES
    | IDS
    | COMMON
    | V1_1
    | {
        "classifier_dropout": 0.0,
        "dense_act_fn": "gelu_new",
        "dtype": "float32",
        "is_decoder": False,
        "is_gated_act": True,
        "model_type": "t5",
        "relative_attention_max_distance": 128,
        "scale_decoder_outputs": False,
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "bos_token_id": None,
    },
}
GENERATION = {"_from_model_config": True, "output_attentions": False, "transformers_version": "5.23.0", "use_cache": True, **IDS}


def folder_of(tmp_path: Path, settings: dict, generation: dict | None = None) -> Path:
    """A folder with these settings and weights that fit them."""
    config = TINY if settings.get("feed_forward_proj", "relu") != "relu" else TINY_V1_0
    formats.write_backbone("hf", tmp_path / "x", config, random_params(config))
    (tmp_path / "x" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "x" / "generation_config.json").write_text(json.dumps(GENERATION if generation is None else generation))
    return tmp_path / "x"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_load(name, tmp_path):
    config, arrays, _ = formats.read_backbone(folder_of(tmp_path, PUBLISHED[name]))
    assert config == (TINY if "feed_forward_proj" in PUBLISHED[name] else TINY_V1_0)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_what_transformers_itself_saves_loads(kind, tmp_path):
    """Every key that the installed transformers knows, set to its default, is in a table."""
    transformers = pytest.importorskip("transformers")
    size = SIZES | {"num_layers": 2, "num_decoder_layers": 1}
    cls, model = (
        (transformers.T5Config, transformers.T5ForConditionalGeneration)
        if kind == "t5"
        else (transformers.MT5Config, transformers.MT5ForConditionalGeneration)
    )
    model(cls(**size)).save_pretrained(tmp_path / "x")
    formats.read_backbone(tmp_path / "x")
    every = {**cls(**size).to_dict(), "architectures": None}
    huggingface_keys.check_config(every, "every key")
    huggingface_keys.check_generation(transformers.GenerationConfig().to_dict() | IDS, "every key of generation")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("decoder_start_token_id", 5, "says decoder_start_token_id = 5, .*generation_config.json says 0; transformers trains with one"),
        ("eos_token_id", 2, "eos_token_id = 2; only 1 or"),
        ("eos_token_id", [1, 2], r"eos_token_id = \[1, 2\]; only 1 or"),
        ("eos_token_id", None, "eos_token_id = None; only 1"),
        ("eos_token_id", True, "eos_token_id = True; only 1"),
        ("pad_token_id", 1, "pad_token_id = 1; only 0"),
        ("is_encoder_decoder", False, "is_encoder_decoder = False; only True"),
        ("tie_encoder_decoder", True, "tie_encoder_decoder = True"),
        ("pruned_heads", {"0": [1]}, "pruned_heads = {'0': .1.}"),
        ("quantization_config", {"load_in_8bit": True}, "quantization_config = "),
        ("auto_map", {"AutoModel": "x.Y"}, "auto_map = "),
        ("dense_act_fn", "gelu", "dense_act_fn = 'gelu'; only 'gelu_new'"),
        ("is_gated_act", False, "is_gated_act = False; only True"),
        ("hidden_size", 99, "hidden_size = 99 and d_model = 16 are the same setting"),
        ("forced_bos_token_id", 7, "forced_bos_token_id = 7; only null"),
        ("repetition_penalty", 1.2, "repetition_penalty = 1.2; only 1"),
        ("min_length", 30, "min_length = 30; only 0"),
        ("suppress_tokens", [5], "suppress_tokens = "),
        ("attention_scale", 0.5, "'attention_scale' = 0.5, which is not known here and may change the arithmetic"),
        ("relative_attention_max_distance", 16, "relative_attention_max_distance = 16; it must be more than half of the 32 buckets"),
        ("relative_attention_num_buckets", 0, "relative_attention_num_buckets = 0 is outside 4"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon = nan"),
        ("layer_norm_epsilon", "x", "layer_norm_epsilon = 'x'"),
        ("num_layers", 10**6, "1,000,002 layers by its config, but holds only 61 arrays"),
        ("num_layers", 10**30, "it takes a whole number"),
        ("num_layers", True, "num_layers = True"),
        ("d_kv", "8", "d_kv = '8'"),
        ("num_heads", 0, "num_heads = 0"),
        ("tie_word_embeddings", "false", "tie_word_embeddings = 'false'; it takes true or false"),
        ("feed_forward_proj", ["relu"], "feed_forward_proj"),
        ("model_type", ["t5"], "model_type"),
    ],
)
def test_a_key_that_changes_the_meaning_is_refused_by_name(key, value, message, tmp_path):
    with pytest.raises(UserError, match=f"config.json.*{message}|{message}"):
        formats.read_backbone(folder_of(tmp_path, PUBLISHED["flan-t5-base"] | {key: value}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"decoder_start_token_id": 5}, "says 5; transformers trains with one and answers with the other"),
        ({"decoder_start_token_id": None, "bos_token_id": 5}, "bos_token_id = 5"),
        ({"eos_token_id": [1, 32]}, "eos_token_id"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size = 3"),
        ({"new_way": 1}, "'new_way' = 1"),
    ],
)
def test_generation_configs(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"generation_config.json.*{message}"):
        formats.read_backbone(folder_of(tmp_path, PUBLISHED["t5-small"], GENERATION | changes))


def test_keys_by_their_general_names(tmp_path):
    general = {general: PUBLISHED["t5-small"][name] for general, name in huggingface_keys.ALIASES.items()}
    settings = {key: value for key, value in PUBLISHED["t5-small"].items() if key not in huggingface_keys.ALIASES.values()} | general
    assert formats.read_backbone(folder_of(tmp_path, settings))[0] == TINY_V1_0


def test_each_key_is_in_one_table_and_in_the_documentation():
    keys = huggingface_keys
    tables = [keys.READ, keys.ALIASES, keys.NETWORK, keys.TEXT_IDS, keys.ANSWERS, *keys.IGNORED.values()]
    every = [key for table in tables for key in table]
    assert len(every) == len(set(every))
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
    assert [key for key in every if f"`{key}`" not in text] == []
