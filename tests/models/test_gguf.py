"""Reading GGUF files: a tiny one written here, and all that is refused by name."""

import functools
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.gguf import load
from bayesprompt.models.llama import Llama, make_llama, shapes

TINY = Llama(
    num_tokens=260, embed_dim=24, num_heads=3, num_kv_heads=1, num_layers=2, mlp_dim=32, context=64, rope_base=500.0,
    tied=False,
)  # fmt: skip
NAMES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "attention_output": "attn_output", "mlp_gate": "ffn_gate",
    "mlp_up": "ffn_up", "mlp_down": "ffn_down", "attention_norm": "attn_norm", "mlp_norm": "ffn_norm",
}  # fmt: skip
VOCABULARY = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "he", "hey", "<|spare|>"]
ONES = np.ones(24, np.float32)


@functools.cache
def weights(sizes=TINY):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes(sizes))


def write(path: Path, skip=(), fields=(), tensors=(), architecture="llama", sizes=TINY, **writing) -> Path:
    """Write the tiny network as a GGUF file; `skip` leaves fields and tensors out, the others replace or add some.

    `fields` holds values by name, those of the architecture with a leading dot; `tensors` arrays by name.
    """
    found = {
        ".context_length": 64, ".embedding_length": 24, ".block_count": 2, ".feed_forward_length": 32,
        ".attention.head_count": 3, ".attention.head_count_kv": 1, ".rope.dimension_count": sizes.head_dim,
        ".rope.freq_base": 500.0, ".attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": VOCABULARY, "tokenizer.ggml.merges": ["h e", "he y"],
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in VOCABULARY],
    } | dict(fields)  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture, **writing)
    kinds = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
    for name, value in found.items():
        if name not in skip:
            name = architecture + name if name.startswith(".") else name
            getattr(writer, f"add_{kinds[type(value)]}")(name, value)

    def of_llama_cpp(rows, heads):
        """Put a head's rows into the order of interleaved rotation, as llama.cpp's conversion does."""
        return rows.reshape(heads, 2, len(rows) // heads // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    params = weights(sizes)
    kept = {"token_embd.weight": params["embedding"], "output.weight": params["unembedding"]["rows"]}
    kept["output_norm.weight"] = params["unembedding"]["norm"]
    for ours, theirs in NAMES.items():
        for layer, matrix in enumerate(params["torso"][ours]):
            heads = {"query": 3, "key": 1}.get(ours)
            kept[f"blk.{layer}.{theirs}.weight"] = of_llama_cpp(matrix.T, heads) if heads else matrix.T
    for name, array in (kept | dict(tensors)).items():
        if name not in skip:
            writer.add_tensor(name, array.copy())  # old versions swap bytes in place
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refuses(path, message, error=RefusedFileError):
    """Check that a file is refused in one line that names it and says what must be."""
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "must" in str(caught.value)


@pytest.mark.parametrize("sizes", [TINY, replace(TINY, head_size=10)], ids=["plain", "heads of a size of their own"])
def test_a_file_gives_the_network_that_was_written(tmp_path, sizes):
    size = {} if sizes is TINY else {".attention.key_length": 10, ".attention.value_length": 10}
    model = load(write(tmp_path / "file.gguf", fields=size, sizes=sizes))
    assert replace(model.sizes, norm_epsilon=1e-5) == sizes  # the file has it in float32
    assert model.sizes.norm_epsilon == np.float32(1e-5) and model.path == tmp_path / "file.gguf"
    for found, wanted in zip(jax.tree.leaves(model.params), jax.tree.leaves(weights(sizes)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 260, (2, 9)), jnp.int32)
    wanted = make_llama(sizes).apply(jax.tree.map(jnp.asarray, weights(sizes)), tokens)
    np.testing.assert_allclose(model.predictor.apply(model.params, tokens), wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_queries_and_keys_come_in_another_order_in_the_file(tmp_path):
    """In the file, neighbouring rows turn together; here, rows i and i + 4 of a head's 8."""
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(write(tmp_path / "file.gguf")).tensors}
    for ours, theirs in (("query", "attn_q"), ("key", "attn_k")):
        matrix = weights()["torso"][ours][0].T
        np.testing.assert_array_equal(stored[f"blk.0.{theirs}.weight"][:8], matrix[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_a_tied_network_without_optional_fields_is_read(tmp_path):
    wide = {f"blk.{layer}.attn_{part}.weight": np.eye(24, dtype=np.float32) for layer in (0, 1) for part in "kv"}
    optional = [".attention.head_count_kv", ".rope.dimension_count", ".rope.freq_base", "output.weight"]
    model = load(write(tmp_path / "file.gguf", optional, {".attention.head_count": 1}, wide))
    assert model.sizes.tied and model.sizes.num_kv_heads == 1 and model.sizes.rope_base == 10_000
    assert set(model.params["unembedding"]) == {"norm"}


@pytest.mark.parametrize(
    ("fields", "freqs", "factors"),
    [
        ({".rope.scale_linear": 4.0}, [1, 1, 1, 1], (4, 4, 4, 4)),
        ({".rope.scaling.factor": 4.0, ".rope.scale_linear": 2.0}, [1, 1, 1, 1], (4, 4, 4, 4)),  # linear without a type
        ({".rope.scaling.type": "none", ".rope.scaling.factor": 4.0}, [1, 1, 1, 1], ()),
        ({".rope.scaling.factor": 0.0, ".rope.scaling.attn_factor": 1.0}, [1, 1, 1, 1], ()),
        ({}, [1, 2, 4, 8], (1, 2, 4, 8)),
        ({".rope.scaling.factor": 2.0}, [1, 2, 4, 8], (2, 4, 8, 16)),
    ],
)
def test_scalings_of_the_rotation_are_applied(tmp_path, fields, freqs, factors):
    tensors = {"rope_freqs.weight": np.array(freqs, np.float32)}
    assert load(write(tmp_path / "file.gguf", fields=fields, tensors=tensors)).sizes.rope_factors == factors
    if min(freqs) == max(freqs):
        assert load(write(tmp_path / "file.gguf", fields=fields)).sizes.rope_factors == factors


def test_what_changes_no_number_is_no_hindrance(tmp_path):
    names = "name author license.link url source.repo_url base_model.0.doi tags file_type sampling.top_p".split()
    free = {f"general.{name}": "x" for name in names} | {"tokenizer.chat_template": "{{ messages }}"}
    free |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True, "quantize.imatrix.file": "x"}
    free |= {".vocab_size": 260, ".expert_count": 0, ".rope.scaling.finetuned": True, "general.quantization_version": 2}
    load(write(tmp_path / "file.gguf", fields=free))


def test_what_is_no_whole_gguf_file_is_refused(tmp_path):
    path = write(tmp_path / "file.gguf")
    data = path.read_bytes()
    cut = [data[:end] for end in np.linspace(0, len(data) - 1, 40, dtype=int)]
    for content in (*cut, b"GGUF", b"PK\x03\x04" + data[4:], data[:4] + b"\1" + data[5:]):
        path.write_bytes(content)
        refuses(path, "no whole GGUF file: must be one")
    refuses(write(path, endianess=gguf.GGUFEndian.BIG), "written on a machine of the other byte order")
    refuses(tmp_path / "none.gguf", "there is no such file", UserError)


def test_tensors_that_lie_on_each_other_are_refused(tmp_path):
    """Every matrix is said to be as large as the embedding, at the same place: a small file could ask for much."""
    path = write(tmp_path / "file.gguf")
    data = bytearray(path.read_bytes())
    for tensor in gguf.GGUFReader(path).tensors:
        end = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts)
        struct.pack_into("<Q", data, end - 8, 0)
        if len(tensor.shape) == 2:
            struct.pack_into("<QQ", data, end - 28, 24, 260)
    path.write_bytes(data)
    refuses(path, "tensors lie on each other")


REFUSED = [
    ({"architecture": "mamba"}, "general.architecture 'mamba': must be 'llama'"),
    ({"fields": {".of\ntwo lines": 1}}, r"llama.of\\ntwo lines 1: must be absent"),
    ({"skip": [".block_count"]}, "llama.block_count None: must be a whole number"),
    ({"skip": ["token_embd.weight"]}, "without the weights token_embd.weight"),
    ({"skip": ["blk.1.ffn_up.weight"]}, "without the weights blk.1.ffn_up.weight"),
    ({"fields": {".block_count": 1}}, "weights 'blk.1.attn_k.weight': must be absent"),
    ({"fields": {".block_count": 2**32 - 1}}, "without the weights blk.2."),
    ({"fields": {".feed_forward_length": 2**32 - 1}}, r"of shape \(24, 32\): must be \(24, 4294967295\)"),
    ({"fields": {".attention.key_length": 16}}, r"llama.rope.dimension_count 8: must be 16"),
    ({"fields": {".attention.head_count": 5}}, "embed_dim = 24: must be a multiple of 2 \\* num_heads = 10"),
    ({"fields": {".rope.freq_base": float("nan")}}, "rope_base = nan: must be > 1"),
    ({"fields": {".rope.scaling.factor": -1.0}}, "rope_factors = .*: must be > 0"),
    ({"tensors": {"rope_freqs.weight": ONES[:3]}}, r"rope_freqs.weight of shape \(3,\): must be \(4,\)"),
    ({"tensors": {"output.weight": np.ones((260, 16), np.float32)}}, r"output.weight of shape \(260, 16\)"),
    ({"tensors": {"output_norm.weight": np.nan * ONES}}, "output_norm.weight with numbers that are not finite"),
]
REFUSED += [({"tensors": {name: ONES}}, f"weights '{name}': must be absent") for name in (
    "blk.0.attn_q.bias", "blk.1.attn_output.bias", "blk.0.ffn_gate.bias", "blk.0.attn_q_norm.weight", "output.bias",
    "blk.0.ffn_gate_inp.weight",
)]  # fmt: skip
REFUSED += [({"fields": {name: value}}, f"{name} {value!r}: must be {wanted}") for name, value, wanted in (
    (".block_count", "2", "a whole number"), (".attention.head_count", 3.5, "a whole number"),
    (".rope.freq_base", "x", "a number"), (".rope.dimension_count", 4, "8, the size of a head"),
    (".attention.value_length", 4, "8, the size of a head"), (".attention.causal", False, "True"),
    (".attention.sliding_window", 4096, "0"), (".expert_count", 8, "0"), (".expert_used_count", 2, "0"),
    (".vocab_size", 261, "260"), (".rope.scaling.type", "yarn", "'none' or 'linear'"),
    (".rope.scaling.attn_factor", 2.0, "1.0"), ("general.type", "adapter", "'model'"),
    ("general.quantization_version", 1, "2"), ("tokenizer.ggml.add_space_prefix", True, "False"),
    *((name, 0.5, "absent") for name in (
        ".logit_scale", ".embedding_scale", ".residual_scale", ".attention.scale", ".attention.clamp_kqv",
        ".rope.scaling.yarn_ext_factor", ".unheard_of", "general.unheard_of", "tokenizer.ggml.remove_extra_whitespaces",
    )),
)]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, change, message):
    refuses(write(tmp_path / "file.gguf", **change), message)
