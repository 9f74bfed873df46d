"""The page on which a reader flips coins and trained networks predict, with no Python behind it.

`page` packs all that it needs into one HTML output: the predictors, the networks' weights, and `play.js`, which
computes and draws. It works wherever a notebook shows HTML; the book's pages have the weights and the script as files.
"""

import base64
import html
import json
from importlib import resources
from typing import Any, NamedTuple

import jax
import numpy as np
from IPython.display import HTML
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from bayesprompt.checks import UserError
from bayesprompt.files import array_name, tree_hash
from bayesprompt.lab.cells import load_cell, load_network, median_repetition
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.widgets import data_url
from bayesprompt.measures.regret import best_hard_prompt
from bayesprompt.models.predictor import LSTM, Params, Predictor, predict_all
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.prompting.experiments import EXPERIMENTS, PRETRAINING, RANDOM_COINS, TWO_COINS
from bayesprompt.sources import BetaCoins, Coin, CoinMixture, Exchangeable
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS, prefix_from_rows

TARGETS = {"single-coin": "0.2", "two-coins": "0.2 or 0.8"}
UNTRAINED = {"untrained-two-coins": "0.2 or 0.8", "untrained-random-coins": "any coin"}
NETWORKS = {
    f"{kind}, {words}": (architecture, method, targets)
    for kind, architecture in {"LSTM": "lstm", "Transformer": "transformer"}.items()
    for words, method, targets in (("trained", "Pretrained", TARGETS), ("untrained", "Untrained", UNTRAINED))
}
FIRST = ("Laplace's rule", "LSTM", "LSTM HardPT 0.2", "LSTM SoftPT 0.2")  # what the page begins with
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # base64's
LEVELS = 2047  # of either sign: 12 bits are two signs of base64


class Offered(NamedTuple):
    """A predictor that the page offers: a source (its Bayes predictor), or a network; what it reads first; its name."""

    name: str
    group: str
    model: Exchangeable | tuple[Predictor, Params]
    prefix: Prefix = NO_PREFIX


def offered(store: Store | None = None) -> list[Offered]:
    """Return every predictor whose numbers are stored: the exact ones, and each network without and with its prompts.

    Of a method's repetitions it is the one whose regret after 50 flips is the median, as in the chapters' figures of
    predictions. Where paper scale is not stored, the quick one stands in, and its name says so.
    """
    store, single = store or Store(), Coin(0.2)
    best = best_hard_prompt(RANDOM_COINS, single, 6, 50).counts
    found = [
        Offered("Laplace's rule", "Exact", RANDOM_COINS),
        Offered("Laplace best prompt 0.2", "Exact", RANDOM_COINS, hard_prefix(np.repeat([0, 1], best))),
        Offered("Bayes for 0.2", "Exact", single),
        Offered("Bayes for 0.2 or 0.8", "Exact", TWO_COINS),
    ]
    for group, (architecture, method, targets) in NETWORKS.items():
        network = load_network(Cell(PRETRAINING, architecture, method), store)
        if network is None:
            continue
        name = group.replace(", trained", "").replace(", untrained", " untrained")
        found.append(Offered(name, group, network))
        for experiment, words in targets.items():
            for each in PREFIX_METHODS:
                if (prompt := _stored(experiment, architecture, each, network[1], store)) is not None:
                    found.append(Offered(f"{name} {each} {words}{prompt[1]}", group, network, prompt[0]))
    return found


def probabilities(one: Offered, tokens: Int[np.ndarray, "B N"]) -> Float[np.ndarray, "B N"]:
    """Return P(heads) that a predictor of the page states before each token."""
    if isinstance(one.model, tuple):
        return np.exp(predict_all(*one.model, one.prefix, tokens)[..., 0])
    prompt = np.zeros((0, 2)) if one.prefix.inputs is None else np.asarray(one.prefix.inputs)
    seen = np.cumsum(np.eye(2)[tokens], axis=1) - np.eye(2)[tokens] + prompt.sum(0)
    return np.exp(one.model.predictive_log_probs(seen)[..., 0])


def _stored(experiment: str, architecture: str, method: str, params: Params, store: Store) -> tuple[Prefix, str] | None:
    """The median repetition's prompt, if one is stored that was found on exactly this network."""
    for scale, mark in (("paper", ""), ("quick", " (quick)")):
        dataset = load_cell(Cell(EXPERIMENTS[experiment], architecture, method, scale), store)
        if dataset is not None and json.loads(dataset.attrs["config"])["network"] == tree_hash(params):
            return prefix_from_rows(method, dataset.prefix.values[median_repetition(dataset)]), mark
    return None


def data(store: Store | None = None, exact: bool = False) -> dict[str, Any]:
    """Return what `play.js` reads; weights as 12-bit numbers with a scale a column, or, `exact`, as float32."""
    predictors, networks = offered(store), {}
    entries = []
    for one in predictors:
        entry = {"name": one.name, "group": one.group} | _prompt(one.prefix)
        if isinstance(one.model, tuple):
            entry["network"] = one.group
            networks.setdefault(one.group, _network(*one.model, exact))
        else:
            entry["exact"] = _exact(one.model)
        entries.append(entry)
    names = [one.name for one in predictors]
    first = [names.index(name) for name in FIRST if name in names]
    return {"predictors": entries, "networks": networks, "first": first}


def _exact(source: Exchangeable) -> dict[str, Any]:
    if isinstance(source, BetaCoins):
        return {"beta": [source.alpha, source.beta]}
    if isinstance(source, Coin | CoinMixture):
        biases = [component[0] for component in source.components]
        return {"biases": biases, "weights": list(source.weights)}
    raise UserError(f"source = {source}: must be BetaCoins, a Coin or a CoinMixture")


def _prompt(prefix: Prefix) -> dict[str, Any]:
    if prefix.embeddings is not None:
        rows = np.asarray(prefix.embeddings, "<f4")
        return {"embeddings": base64.b64encode(rows.tobytes()).decode(), "width": rows.shape[1]}
    if prefix.inputs is None:
        return {}
    rows = np.asarray(prefix.inputs, np.float64)
    if ((rows == 0) | (rows == 1)).all():
        return {"tokens": rows.argmax(1).tolist()}
    return {"inputs": rows.round(7).tolist()}


def _network(predictor: Predictor, params: Params, exact: bool) -> dict[str, Any]:
    """A network's sizes, the order of its arrays (name, rows, columns, bits), and their numbers as text."""
    sizes = predictor.architecture
    if sizes.num_layers != 1 or sizes.num_tokens != 2:
        raise UserError(f"architecture = {sizes}: must have one layer and two tokens")
    real, packed, arrays = [], [], []
    for name, array in _arrays(predictor, params).items():
        array = np.asarray(array, "<f4")
        rows, columns = array.shape if array.ndim == 2 else (1, len(array))
        bits = 32 if exact or rows == 1 else 12
        if bits == 12:
            whole, scale = twelve_bits(array)
            packed.append("".join(SIGNS[n >> 6] + SIGNS[n & 63] for n in (whole.ravel() + 2048).tolist()))
        real.append(array if bits == 32 else scale)
        arrays.append([name, rows, columns, bits])
    text = base64.b64encode(b"".join(each.tobytes() for each in real)).decode() + "." + "".join(packed)
    kind = {"kind": "lstm"} if isinstance(sizes, LSTM) else {"kind": "transformer", "heads": sizes.num_heads}
    return kind | {"arrays": arrays, "text": text}


def _arrays(predictor: Predictor, params: Params) -> dict[str, np.ndarray]:
    """A network's arrays as `play.js` names them: an LSTM's gates side by side, in the order i, f, g, o."""
    flat = {array_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    if not isinstance(predictor.architecture, LSTM):
        return {name.removeprefix("torso.blocks_0."): array for name, array in flat.items()}
    found = {name: array for name, array in flat.items() if not name.startswith("torso.")}
    for name, (side, part) in {"kernel": ("i", "kernel"), "recurrent": ("h", "kernel"), "bias": ("h", "bias")}.items():
        found[name] = np.concatenate([flat[f"torso.cells_0.{side}{gate}.{part}"] for gate in "ifgo"], axis=-1)
    return found


def twelve_bits(matrix: Float[np.ndarray, "rows columns"]) -> tuple[np.ndarray, Float[np.ndarray, " columns"]]:
    """Return whole numbers from -2047 to 2047 and a scale a column, float32: their product is the matrix, rounded."""
    scale = (np.abs(matrix).max(0) / LEVELS).astype("<f4")
    return np.rint(matrix / np.where(scale == 0, 1, scale)).astype(np.int64), scale


def page(still: Figure, alt: str, caption: str, store: Store | None = None, exact: bool = False) -> HTML:
    """Return the page's HTML. `still` is the figure that stands in for it on paper and where no script runs."""
    figure = (
        f'<figure class="still"><img src="{data_url(still)}" alt="{html.escape(alt)}">'
        f"<figcaption><p>{html.escape(caption)}</p></figcaption></figure>"
    )
    markup, style, script = (
        resources.files("bayesprompt.prompting").joinpath(f"play.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    packed = json.dumps(data(store, exact), separators=(",", ":")).replace("</", r"<\/")
    return HTML(
        f'<div class="play">{figure}<style>{style}</style>{markup}'
        f'<script type="application/json">{packed}</script><script>{script}</script></div>'
    )
