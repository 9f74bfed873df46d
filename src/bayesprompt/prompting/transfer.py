"""Does a tuned prompt work in another network? Prefixes are read by networks that were trained from other seeds."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from bayesprompt.checks import UserError, check_integer
from bayesprompt.lab.cells import Cell, evaluation_data, load_cell, load_network
from bayesprompt.measures.regret import cumulative_regret
from bayesprompt.models.prefixes import NO_PREFIX
from bayesprompt.prompting.compute import predict_all
from bayesprompt.prompting.experiments import EXPERIMENTS
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS, prefix_from_rows


def transfer_regret(
    store: Store,
    architecture: str,
    method: str,
    experiment: str = "single-coin",
    scale: str = "paper",
    seeds: Sequence[int] = (0, 1),
    n: int = 50,
) -> xr.Dataset | None:
    """Return R(n) (Eq. 10, nats) of every seed's tuned prefixes in every seed's network; None if a cell is missing.

    `regret` (network, prefix, repetition): both labelled by seed, so on the diagonal every prefix is at home.
    `untuned` (network): the same network's R(n) without a prefix. All on the first seed's evaluation sequences.
    Raises ValueError for a method without a prefix, fewer than two seeds, or n outside the evaluation's length.
    """
    if method not in PREFIX_METHODS:
        raise UserError(f"method = {method}: must be one of {', '.join(PREFIX_METHODS)}")
    if len(set(seeds)) < max(2, len(seeds)):
        raise UserError(f"seeds = {tuple(seeds)}: at least two, all different")
    made = [Cell(experiment, architecture, method, scale, int(seed)) for seed in seeds]
    networks = [load_network(cell, store) for cell in made]
    tuned = [load_cell(cell, store) for cell in made]
    if None in networks or any(dataset is None for dataset in tuned):
        return None
    tokens, latent = evaluation_data(made[0])
    check_integer("n", n, 1, tokens.shape[1])
    tokens = tokens[:, :n]  # no prediction depends on what comes after it
    oracle = EXPERIMENTS[experiment].target.oracle_log_probs(tokens, latent)

    def regret(network, prefix):
        return cumulative_regret(predict_all(*network, prefix, tokens), tokens, oracle).mean[-1]

    prefixes = [[prefix_from_rows(method, rows) for rows in dataset.prefix.values] for dataset in tuned]
    table = [[[regret(network, prefix) for prefix in home] for home in prefixes] for network in networks]
    return xr.Dataset(
        {
            "regret": (("network", "prefix", "repetition"), np.array(table)),
            "untuned": ("network", np.array([regret(network, NO_PREFIX) for network in networks])),
        },
        coords={"network": list(seeds), "prefix": list(seeds)},
        attrs={"units": "nats"},
    )
