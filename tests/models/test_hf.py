"""Folders of Hugging Face against what transformers computes from them, and all that is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.hf import llama_from_safetensors
from bayesprompt.models.llama import make_llama

with np.load(Path(__file__).with_name("hf.npz")) as recorded:
    RECORDED = dict(recorded)
NETWORKS = sorted({key.split("/")[0] for key in RECORDED} - {"tokens"})
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
ONES = np.ones(24, np.float32)


@pytest.fixture(autouse=True, scope="module")
def optimised():
    """Compile as users do: what is compared to 5e-6 rounds a little more without."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def write(folder, name="tied", config=(), drop=(), tensors=(), shards=0):
    """Write a recorded network as transformers did; settings and tensors can be added, replaced or dropped."""
    given = json.loads(RECORDED[f"{name}/config.json"].tobytes()) | dict(config)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in given.items() if key not in drop}))
    kept = {}
    for key in (key for key in RECORDED if key.startswith(f"{name}/model.") or key == f"{name}/lm_head.weight"):
        weights = RECORDED[key]
        kept[key.split("/")[1]] = weights.view(ml_dtypes.bfloat16) if weights.dtype == np.int16 else weights
    kept = {key: value for key, value in (kept | dict(tensors)).items() if key not in drop}
    if not shards:
        save_file(kept, folder / "model.safetensors")
        return folder
    place = {key: f"model-{i % shards}.safetensors" for i, key in enumerate(sorted(kept))}
    for file in set(place.values()):
        save_file({key: kept[key] for key in kept if place[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def logits(model):
    """Return the logits after every token of the recorded text, but for a constant each."""
    padded = jnp.pad(RECORDED["tokens"], ((0, 0), (0, 1)))  # the last token is not read
    return np.asarray(jax.jit(model.predictor.apply)(model.params, padded), np.float64)


def error(found, name):
    wanted = RECORDED[f"{name}/logits"].astype(np.float64)
    found = found - (found - wanted).mean(-1, keepdims=True)
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_that_transformers_computes(tmp_path, name):
    model = llama_from_safetensors(write(tmp_path, name))
    assert error(logits(model), name) < 5e-6
    assert model.tokenizer is None and model.path == tmp_path
    assert model.sizes.head_size == {"llama3": 16, "own head size": 10}.get(name)
    if name in ("llama3", "linear"):  # else they could agree without the scaling
        plain = model._replace(predictor=make_llama(replace(model.sizes, rope_factors=())))
        assert error(logits(plain), name) > 0.1


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("grouped", {"rope_theta": 500, "rope_scaling": None, "torch_dtype": "float16"}),
        ("linear", {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.5}}),
        ("llama3", {"rope_theta": 100.0, "rope_scaling": LLAMA3}),
        ("llama3", {"rope_theta": 1.5, "rope_scaling": LLAMA3 | {"rope_theta": 100.0}}),
    ],
)
def test_settings_of_older_versions_mean_the_same(tmp_path, name, config):
    older = {"quantization_config": None, "rope_interleaved": False, "_model_name_or_path": "x", "eos_token_id": [0, 1]}
    folder = write(tmp_path, name, older | config, drop=["rope_parameters", "pretraining_tp", "dtype"])
    assert error(logits(llama_from_safetensors(folder)), name) < 5e-6


def test_several_files_with_an_index_are_one_network(tmp_path):
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": ONES[:4] for layer in (0, 1)}
    model = llama_from_safetensors(write(tmp_path, "grouped", tensors=buffers, shards=3))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert error(logits(model), "grouped") < 5e-6


def test_the_tokeniser_of_the_folder_comes_with_it(tmp_path, monkeypatch):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(write(tmp_path) / "tokenizer.json"))
    assert llama_from_safetensors(tmp_path).encode("b a c a").tolist() == [1, 0, 2, 0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert llama_from_safetensors(tmp_path).tokenizer is None
    monkeypatch.undo()
    Tokenizer(models.WordLevel({"a": 48}, "a")).save(str(tmp_path / "tokenizer.json"))
    refuses(tmp_path, "tokenizer.json = token 48: must be below 48")
    (tmp_path / "tokenizer.json").write_text('{\n"model": 1}')
    refuses(tmp_path, "tokenizer.json = no tokeniser: must be one")


def refuses(folder, message, error=RefusedFileError):
    with pytest.raises(error, match=message) as caught:
        llama_from_safetensors(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and "must" in str(caught.value)


YARN = {"rope_type": "yarn", "factor": 4.0}
REFUSED = [({"config": {name: value}}, f"{name} {value!r}: must be {wanted}") for name, value, wanted in (
    ("model_type", "mistral", "'llama'"), ("hidden_size", "24", "a whole number"), ("rms_norm_eps", None, "a number"),
    ("num_hidden_layers", 1.5, "a whole number"), ("tie_word_embeddings", "yes", "a whole number"),
    ("attention_bias", True, "False"), ("mlp_bias", True, "False"), ("hidden_act", "gelu", "'silu'"),
    ("rope_interleaved", True, "False"), ("partial_rotary_factor", 0.5, "1.0"), ("sliding_window", 16, "absent"),
    ("quantization_config", 4, "absent"), ("logit_scale", 0.5, "absent"), ("layer_types", 1, "absent"),
)]  # fmt: skip
REFUSED += [({"config": {"rope_parameters": rope}}, message) for rope, message in (
    (YARN, "rope_type 'yarn': must be 'default', 'linear' or 'llama3'"), ({"factor": 2.0}, "factor 2.0: must be "),
    (YARN | {"rope_type": "dynamic"}, "rope_type 'dynamic': must"), ({"rope_type": "linear"}, "factor None: must be "),
    (LLAMA3 | {"high_freq_factor": 1.0}, "low_freq_factor 1.0: must be below high_freq_factor = 1.0"),
    (LLAMA3 | {"factor": 0}, "factor > 0"), (LLAMA3 | {"attention_factor": 2}, "attention_factor 2: must be absent"),
    (LLAMA3 | {"rope_theta": -1}, "rope_base = -1.0: must be > 1"), ([1], r"rope_scaling \[1\]: must be an object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: must be 1.0"),
)]  # fmt: skip
REFUSED += [
    ({"config": {"rope_scaling": YARN}}, "rope_type 'yarn'"),
    ({"config": {"num_attention_heads": 0}}, "num_heads = 0: must be >= 1"),
    ({"config": {"num_hidden_layers": 1}}, "weights 'model.layers.1.input_layernorm.weight': must be absent"),
    ({"config": {"num_hidden_layers": 10**12}}, "without the weights model.layers.2.input_layernorm.weight"),
    ({"config": {"intermediate_size": 2**40}}, r"down_proj.weight of shape \(24, 20\): must be \(24, 1099511627776\)"),
    ({"config": {"tie_word_embeddings": False}}, "without the weights lm_head.weight"),
    ({"tensors": {"lm_head.weight": np.ones((48, 24), np.float32)}}, "weights 'lm_head.weight': must be absent"),
    ({"tensors": {"model.layers.0.self_attn.q_proj.bias": ONES}}, "q_proj.bias': must be absent"),
    ({"tensors": {"model.norm.weight": ONES.astype(np.float64)}}, "model.norm.weight of type F64: must be"),
    ({"tensors": {"model.norm.weight": np.inf * ONES}}, "model.norm.weight with numbers that are not finite"),
    ({"drop": ["model.norm.weight"]}, "without the weights model.norm.weight"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, change, message):
    refuses(write(tmp_path, **change), message)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    refuses(tmp_path, "must have a file config.json", UserError)
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    for content in (b"", data[:100], data[:-1], b"PK" + bytes(100)):
        file.write_bytes(content)
        refuses(tmp_path, "no whole safetensors file: must be one")
    (tmp_path / "other.safetensors").write_bytes(data)
    refuses(tmp_path, r"must have one file \*.safetensors, or model.safetensors.index.json", UserError)
    index = tmp_path / "model.safetensors.index.json"
    for content, message in (
        ("[]", "no JSON object"), ("{}", "without a weight_map"), ('{"weight_map": {"a": 1}}', "without a weight_map"),
        ('{"weight_map": {"a": "none.safetensors"}}', "no whole safetensors file"),
        ('{"weight_map": {"a": "../../model.safetensors"}}', "no whole safetensors file"),
    ):  # fmt: skip
        index.write_text(content)
        refuses(tmp_path, message)
    file.write_bytes(data)
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}')
    refuses(tmp_path, "must be there once")
    (tmp_path / "config.json").write_text("{")
    refuses(tmp_path, "config.json = no JSON object: must be one")
