"""An unfinished fit on disk, and the run that it belongs to: none other may go on from it."""

import hashlib
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayesprompt.files import OtherRunError, RefusedFileError, load_arrays, set_aside, tree_hash
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.settings import LOG, USUAL, told
from bayesprompt.tuning.tuners import Tuner


def run_record(
    predictor: Predictor, tuner: Tuner, base: Params, source: Any, settings: Any, key: jax.Array, repetitions: int
) -> dict[str, str]:
    """Return a hash of each thing that decides a fit's numbers.

    Functions are known by their names, so that the same program finds its checkpoints again.
    """
    described = {
        "source": [jax.tree.structure(source), tree_hash(source)],
        "settings": [settings],
        "key": [key.dtype, tree_hash(jax.random.key_data(key))],
        "tuner": [tuner.name or tuner],
        "network": [predictor.architecture, tree_hash(base)],
        "repetitions": [repetitions],
    }
    if told() != USUAL:
        described["JAX's settings"] = [told()]
    return {name: hashlib.sha256(_words(parts).encode()).hexdigest() for name, parts in described.items()}


def _words(parts: list[Any]) -> str:
    """Return what parts are, without where they lie in this process's memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join(f"{type(part).__qualname__} {part!r}" for part in parts))


def resume(checkpoint: Path, carry: Any, repetitions: int, record: dict[str, str]) -> tuple[Any, np.ndarray] | None:
    """Return the carry and the losses (R, steps done) of a checkpoint of this very run, or None where there is none.

    A damaged file is set aside with a warning. Raises OtherRunError, with the file untouched, if it is another run's.
    """
    like = carry, jax.ShapeDtypeStruct((repetitions, -1), np.float32)
    try:
        return load_arrays(checkpoint, like, record)
    except FileNotFoundError:
        return None
    except OtherRunError:
        raise
    except RefusedFileError as error:
        LOG.warning("%s", error)
        set_aside(checkpoint)
        return None
