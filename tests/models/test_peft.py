"""Adapters of PEFT against what PEFT computes with them, ours read there and theirs here, and all that is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from record_peft import HERE, NETWORKS, ours
from safetensors.numpy import load_file, save_file
from test_hf import write

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.hf import llama_from_safetensors
from bayesprompt.models.llama import generate
from bayesprompt.models.peft import export_peft, import_peft
from bayesprompt.models.predictor import LSTM, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, check_prefix
from bayesprompt.models.trace import inspect

with np.load(HERE / "peft.npz") as recorded:
    RECORDED = dict(recorded)
THEIRS = ("prompt tuning", "prefix tuning")
with np.load(HERE / "hf.npz") as recorded:
    TOKENS = recorded["tokens"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """The name of a recorded network, and the network."""
    return request.param, llama_from_safetensors(write(tmp_path_factory.mktemp("network"), request.param))


def adapter(folder, name, kind, config=(), drop=(), rows=None):
    """Write a recorded adapter as PEFT did; settings can be replaced or dropped, and rows replaced."""
    given = json.loads(RECORDED[f"{name}/{kind}/config"].tobytes()) | dict(config)
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in given.items() if k not in drop}))
    rows = RECORDED[f"{name}/{kind}/rows"] if rows is None else rows
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    return folder


def error(model, prefix, wanted):
    """Return the largest difference of log-probabilities of the tokens behind a prefix."""
    padded = jnp.pad(TOKENS, ((0, 0), (0, 1)))  # the last token is not read
    found = np.asarray(jax.jit(model.predictor.apply)(model.params, padded, prefix), np.float64)
    wanted = np.asarray(jax.nn.log_softmax(wanted), np.float64)
    return np.abs(found[:, -wanted.shape[1] :] - wanted).max()


@pytest.mark.parametrize("kind", THEIRS)
def test_their_adapters_predict_here_what_they_predict_there(network, kind, tmp_path):
    name, model = network
    prefix = import_peft(adapter(tmp_path, name, kind), model)
    assert prefix.length == 4 and (prefix.keys_values is None) == (kind == "prompt tuning")
    assert error(model, prefix, RECORDED[f"{name}/{kind}/logits"]) < 1e-4
    assert error(model, NO_PREFIX, RECORDED[f"{name}/{kind}/logits"]) > 0.1
    export_peft(tmp_path / "again", model, prefix)
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")["prompt_embeddings"]
    np.testing.assert_array_equal(again, RECORDED[f"{name}/{kind}/rows"])


@pytest.mark.parametrize("kind", ["hard", "embeddings", "layers"])
def test_our_prefixes_predict_there_what_they_predict_here(network, kind, tmp_path):
    name, model = network
    prefix = ours(model.sizes)[kind]
    export_peft(tmp_path, model, prefix)
    written = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    np.testing.assert_allclose(written, RECORDED[f"{name}/{kind}/rows"], rtol=1e-5, atol=1e-6)
    theirs = json.loads(RECORDED[f"{name}/{kind}/config"].tobytes())  # as PEFT read it, less the base's path
    given = json.loads((tmp_path / "adapter_config.json").read_text())
    assert theirs | given | {"base_model_name_or_path": ""} == theirs | {"base_model_name_or_path": ""}
    assert error(model, prefix, RECORDED[f"{name}/{kind}/logits"]) < 1e-4
    assert error(model, import_peft(tmp_path, model), RECORDED[f"{name}/{kind}/logits"]) < 1e-4


def test_keys_and_values_are_decoded_behind_and_inspected(network, tmp_path):
    _, model = network
    rows = ours(model.sizes)["layers"]
    export_peft(tmp_path, model, rows)
    prefix = import_peft(tmp_path, model)
    same = [generate(model.sizes, model.params, TOKENS[:, :5], 12, p).tolist() for p in (rows, prefix)]
    assert same[0] == same[1] != generate(model.sizes, model.params, TOKENS[:, :5], 12).tolist()
    with pytest.raises(UserError, match="behind a prompt of rows"):
        generate(model.sizes, model.params, TOKENS[:, :0], 1, prefix)
    readings = [
        [layer.reading for layer in inspect(model.predictor, model.params, TOKENS, p).layers] for p in (rows, prefix)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *readings)


def test_what_no_other_network_reads_is_refused():
    lstm = make_predictor(LSTM(embed_dim=2, hidden_dim=2))
    with pytest.raises(UserError, match=r"^prefix = keys_values: must be of a LLaMA network; LSTM reads inputs"):
        check_prefix(Prefix(keys_values=np.zeros((1, 2, 3, 4))), lstm.architecture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"peft_type": "LORA"}}, r"peft_type 'LORA': must be 'PROMPT_TUNING' or 'PREFIX_TUNING'"),
        ({"config": {"prefix_projection": True}}, r"prefix_projection True: must be False"),
        ({"config": {"num_transformer_submodules": 2}}, r"num_transformer_submodules 2: must be 1"),
        ({"config": {"num_virtual_tokens": 5}}, r"rows of shape \(4, \d+\): must be \(5, \d+\) for this model"),
        ({"config": {"num_virtual_tokens": "x"}}, r"num_virtual_tokens 'x': must be a whole number"),
        ({"config": {"scaling": 2.0}}, r"scaling 2.0: must be absent"),
        ({"rows": np.zeros((4, 7), np.float32)}, r"rows of shape \(4, 7\)"),
        (
            {"rows": np.full((4, 32), np.nan, np.float32)},
            r"must be prompt_embeddings alone, two axes of finite numbers",
        ),
        ({"drop": ["peft_type"]}, r"peft_type None"),
        ({"config": {"peft_type": ["LORA"]}}, r"peft_type \['LORA'\]: must be"),
    ],
)
def test_other_adapters_are_refused_in_one_line(tmp_path, change, message):
    model = llama_from_safetensors(write(tmp_path, "grouped"))
    with pytest.raises(RefusedFileError, match=message) as refused:
        import_peft(adapter(tmp_path, "grouped", "prefix tuning", **change), model)
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files_are_refused(tmp_path):
    model = llama_from_safetensors(write(tmp_path, "tied"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(UserError, match="must have a file"):
            import_peft(folder, model)
        adapter(folder, "tied", "prompt tuning")
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
        with pytest.raises(RefusedFileError, match="must be one"):
            import_peft(folder, model)
        (folder / name).unlink()
        with pytest.raises(UserError, match="must have a file"):
            import_peft(folder, model)
    with pytest.raises(UserError, match="prefix = none: must have rows"):
        export_peft(tmp_path, model, NO_PREFIX)
