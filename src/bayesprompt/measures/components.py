"""The few directions in which states vary most: principal components."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from bayesprompt.checks import UserError

States = Float[np.ndarray | Array, "*batch S"]


class Components(NamedTuple):
    """Principal components: `mean` (S,), orthonormal `axes` (C, S), and the `variance` (C,) along each, falling.

    An axis' largest entry in size is positive.
    """

    mean: Float[np.ndarray, " S"]
    axes: Float[np.ndarray, "C S"]
    variance: Float[np.ndarray, " C"]


def principal_components(states: States) -> Components:
    """Return all principal components of states (float64 SVD); raises UserError for fewer than two states."""
    states = np.asarray(states, np.float64)
    rows = states.reshape(-1, states.shape[-1])
    if len(rows) < 2:
        raise UserError(f"states = array of shape {states.shape}: must be at least two states")
    mean = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    return Components(mean, axes * np.sign(largest), singular**2 / len(rows))


def project(components: Components, states: States, number: int = 2) -> Float[np.ndarray, "*batch number"]:
    """Return the coordinates of states along the first `number` components; raises UserError if there are fewer."""
    if not 1 <= number <= len(components.axes):
        raise UserError(f"number = {number}: must lie in 1..{len(components.axes)}")
    return (np.asarray(states, np.float64) - components.mean) @ components.axes[:number].T
