"""Principal components against clouds of known shape."""

import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.measures.components import principal_components, project


def cloud(size=400, seed=0):
    """Points of known principal components: exactly uncorrelated coordinates with variances 9, 4, 1/4, turned."""
    draw = np.random.default_rng(seed)
    scores = np.linalg.qr(np.c_[np.ones(size), draw.normal(size=(size, 3))])[0][:, 1:]
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    return scores * np.sqrt(size) * np.array([3.0, 2.0, 0.5]) @ turn + np.array([5.0, -2.0, 1.0]), turn


def test_principal_components_of_a_known_cloud():
    points, turn = cloud()
    found = principal_components(points.reshape(20, 20, 3))
    np.testing.assert_allclose(found.mean, [5.0, -2.0, 1.0])
    np.testing.assert_allclose(found.variance, [9.0, 4.0, 0.25])
    signs = np.sign(turn[[0, 1, 2], np.abs(turn).argmax(axis=1)])
    np.testing.assert_allclose(found.axes, turn * signs[:, None], atol=1e-12)
    scores = project(found, points, 3)
    np.testing.assert_allclose(scores @ found.axes + found.mean, points)
    np.testing.assert_allclose(project(found, points), scores[:, :2])
    # The sign does not hang on the sign of the data: mirrored data have the same axes and opposite scores.
    mirrored = principal_components(10.0 - points)
    np.testing.assert_allclose(mirrored.axes, found.axes, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: principal_components(np.zeros((1, 3))), r"states = array of shape \(1, 3\): must be at least two"),
        (lambda: project(principal_components(cloud()[0]), np.zeros(3), 4), r"number = 4: must lie in 1\.\.3"),
        (lambda: project(principal_components(cloud()[0]), np.zeros(3), 0), r"number = 0: must lie in 1\.\.3"),
    ],
)
def test_bad_input_is_told_in_one_line(make, message):
    with pytest.raises(UserError, match=f"^{message}"):
        make()
