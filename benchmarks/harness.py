"""What the benchmarks share: the machine and its matrix-product rate, paired timings, the public code beside ours.

Nothing of the papers' public code is part of this project: `--thunnini PATH` names a checkout of
google-deepmind/thunnini, which needs the package chex.
"""

import argparse
import functools
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesprompt.devices import make_mesh, padded, use_every_core
from bayesprompt.models.predictor import Architecture, Transformer, make_predictor
from bayesprompt.provenance import commit, device
from bayesprompt.sources.coins import BetaCoins, Coin
from bayesprompt.tuning.fitting import FitConfig, compiled_loop, step_flops
from bayesprompt.tuning.tuners import PREFIX_METHODS, make_tuner

REPOSITORY = Path(__file__).resolve().parents[1]
SAVED = REPOSITORY / "src" / "bayesprompt" / "results" / "benchmarks.json"
ROUNDS = 5
PAUSE = 0.3  # seconds before a timing: threads of the code whose turn has ended may wait actively for a while

# The public code's names for what is tuned.
THUNNINI_METHODS = {
    "SimplexPT": ("prefix_simplex", "simplex"),
    "RealPT": ("prefix_real", "prepend"),
    "SoftPT": ("prefix_soft", "embedding"),
    "EmbedWT": ("embedding", "none"),
    "UnembedWT": ("unembedding", "none"),
    "Un+EmbedWT": ("embedding_unembedding", "none"),
    "FullWT": ("full_parameters", "none"),
    "LoRAWT": ("lora_finetune", "none"),
}


def arguments(description: str, **choices: Any) -> argparse.Namespace:
    """Parse the command line that all benchmarks share; `choices` adds repeatable options with these defaults."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--thunnini", type=Path, metavar="PATH", help="a checkout of google-deepmind/thunnini")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timings of each, taken in turns (median)")
    parser.add_argument("--save", action="store_true", help=f"keep the numbers in {SAVED.relative_to(REPOSITORY)}")
    for name, default in choices.items():
        parser.add_argument(f"--{name}", default=default, nargs="+", type=type(default[0]))
    options = parser.parse_args()
    use_every_core()
    if options.rounds < 1:
        parser.error(f"argument --rounds: {options.rounds}: must be >= 1")
    if options.thunnini is not None and not (options.thunnini / "src" / "predictor.py").exists():
        parser.error(f"argument --thunnini: {options.thunnini}: must be a checkout with src/predictor.py in it")
    return options


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds until everything that `call` returns is computed, after a pause for other threads to rest."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def paired(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Return each call's median seconds over `rounds` turns, after one call each that is not counted."""
    for call in calls:
        jax.block_until_ready(call())
    turns = [[timed(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


@functools.cache
def memory_rate() -> float:
    """Return the bytes/s that a pass over a large array reaches on this machine (read once, written once)."""
    x = jnp.zeros(2**26, jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    add(x).block_until_ready()
    return 2 * x.nbytes / min(timed(lambda: add(x)) for _ in range(10))


@functools.cache
def matrix_rate() -> float:
    """Return the FLOP/s that a large float32 matrix product reaches on this machine, the best of several."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    multiply(x).block_until_ready()
    return 2 * size**3 / min(timed(lambda: multiply(x)) for _ in range(10))


def our_loop(architecture: Architecture, method: str, config: FitConfig, repetitions: int) -> tuple[Any, tuple]:
    """Return the compiled loop and arguments to call it with: one chunk, `config.steps` steps of all repetitions."""
    predictor, tuner = make_predictor(architecture), make_tuner(method, architecture)
    base = jax.device_get(predictor.init(jax.random.key(0)))
    mesh = make_mesh(repetitions, config.batch, predictor.cores)
    keys = jax.random.split(jax.random.key(1), padded(repetitions, mesh.shape["repetition"]))
    run, start = compiled_loop(predictor, tuner, config, mesh)
    source = Coin(0.2) if config.length <= 50 else BetaCoins()
    return run, (base, source, start(base, keys), keys, 0)


def our_steps(run: Any, given: tuple) -> Callable[[], Any]:
    """Return a call that runs the next chunk of what `our_loop` returned (the loop itself or compiled)."""
    base, source, carry, keys, done = given
    held = [carry]

    def call():
        held[0], loss = run(base, source, held[0], keys, done)
        return loss

    return call


def public_step(path: Path, architecture: Architecture, method: str, config: FitConfig) -> tuple[Any, dict, dict]:
    """Return the public code's step, its settings, and arguments to call it with (data drawn beforehand)."""
    lib = public_code(path)
    predictor = public_predictor(lib, architecture, lora=method == "LoRAWT")
    tokens = np.random.default_rng(0).integers(0, 2, (config.batch, config.length))
    tokens = jax.nn.one_hot(jnp.asarray(tokens), 2)
    params = predictor.init(jax.random.key(0), tokens)
    tuned, prefix_type = THUNNINI_METHODS[method]
    prefix = None
    if method in PREFIX_METHODS:
        prefix = jax.random.uniform(jax.random.key(1), (6, architecture.embed_dim if method == "SoftPT" else 2))
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate))
    gradient = lib.functions.make_grad_fn(predictor=predictor, tuning_method=tuned)
    state = optimizer.init(params if prefix is None else prefix)
    settings = {"grad_fn": gradient, "optimizer": optimizer, "prefix_type": prefix_type, "tuning_method": tuned}
    held = {"params": params, "prefix": prefix, "opt_state": state, "sequences": tokens}
    return lib.functions.update_parameters, settings, held


def public_steps(path: Path, architecture: Architecture, method: str, config: FitConfig) -> Callable[[], Any]:
    """Return a call that takes `config.steps` steps of one repetition with the public code."""
    step, settings, held = public_step(path, architecture, method, config)

    def call():
        for _ in range(config.steps):
            held["params"], held["prefix"], held["opt_state"], loss, _ = step(**held, **settings)
        return loss

    return call


@functools.cache
def public_code(path: Path) -> types.SimpleNamespace:
    """Import the parts of the public code that a training step needs (its data generators need more packages)."""
    package = types.ModuleType("thunnini")
    package.__path__ = [str(path)]
    sys.modules["thunnini"] = package
    try:
        from thunnini.src import config, predictor, predictor_torsos, predictor_tuning_functions
    except ModuleNotFoundError as error:
        sys.exit(f"--thunnini = {path}: needs the package {error.name}, which is not installed")
    return types.SimpleNamespace(
        config=config, predictor=predictor, torsos=predictor_torsos, functions=predictor_tuning_functions
    )


def public_predictor(lib: types.SimpleNamespace, architecture: Architecture, lora: bool = False) -> Any:
    """Return the public code's predictor of the same sizes."""
    width = architecture.embed_dim
    if isinstance(architecture, Transformer):
        torso = lib.config.TransformerTorsoConfig(
            hidden_sizes=(width,) * architecture.num_layers, num_attention_heads=architecture.num_heads,
            is_trainable=True, use_lora=lora,
        )  # fmt: skip
        builder = lib.torsos.TransformerPredictorTorso
    else:
        torso = lib.config.LSTMTorsoConfig(
            hidden_sizes=(architecture.hidden_dim,) * architecture.num_layers, is_trainable=True
        )
        builder = lib.torsos.LSTMPredictorTorso
    config = lib.config.PredictorConfig(token_dimensionality=architecture.num_tokens, embedding_dimensionality=width)
    return lib.predictor.Predictor(config=config, torso_config=torso, torso_builder=builder)


def compare_steps(
    options: argparse.Namespace, architecture: Architecture, method: str, config: FitConfig, repetitions: int
) -> dict[str, Any]:
    """Time the training steps of all repetitions, beside the public code's, and print the row."""
    calls = [our_steps(*our_loop(architecture, method, config, repetitions))]
    if options.thunnini is not None:
        calls.append(public_steps(options.thunnini, architecture, method, config))
    seconds = [time / config.steps for time in paired(options.rounds, *calls)]
    learned = method not in (*PREFIX_METHODS, "UnembedWT", "EmbedWT")
    flops = repetitions * step_flops(architecture, config.batch, config.length, learned)
    row = {
        "case": f"{type(architecture).__name__} {method}", "batch": config.batch, "length": config.length,
        "width": architecture.embed_dim, "repetitions": repetitions, "seconds": seconds[0],
        "flops_per_second": flops / seconds[0], "fraction_of_peak": flops / seconds[0] / matrix_rate(),
    }  # fmt: skip
    if len(seconds) > 1:  # the public code runs its repetitions one after the other
        row |= {"public_seconds": seconds[1] * repetitions, "ratio": seconds[1] * repetitions / seconds[0]}
    print(describe(row), flush=True)
    return row


def megabytes(compiled: Any) -> float:
    """Return what one device holds while the program runs."""
    sizes = compiled.memory_analysis()
    held = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return (held - sizes.alias_size_in_bytes) / 2**20


def describe(row: dict[str, Any]) -> str:
    """Return one printed line: seconds, GFLOP/s, fraction of the machine's matrix-product rate, ratio."""
    parts = [f"{row['case']:24s}", f"{row['seconds']:9.4f} s"]
    if "flops_per_second" in row:
        parts += [f"{row['flops_per_second'] / 1e9:8.1f} GFLOP/s", f"{row['fraction_of_peak']:5.2f} of peak"]
    if "ratio" in row:
        parts += [f"public code {row['public_seconds']:9.4f} s", f"ratio {row['ratio']:5.2f}"]
    return "  ".join(parts)


def machine() -> dict[str, Any]:
    """Describe where and when: device, matrix-product rate, versions, commit, date."""
    return {
        "device": device(), "matrix_rate": matrix_rate(), "memory_rate": memory_rate(), "jax": jax.__version__,
        "python": platform.python_version(), "commit": commit(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def finish(options: argparse.Namespace, script: str, rows: list[dict[str, Any]]) -> None:
    """Print the machine; with --save, keep the rows in place of this script's former ones on this kind of device."""
    where = machine()
    print(f"{Path(script).stem}: {where['device']}, {where['matrix_rate'] / 1e9:.0f} GFLOP/s in products")
    if options.save:
        name = f"{Path(script).stem}.{jax.default_backend()}"
        saved = json.loads(SAVED.read_text()) if SAVED.exists() else {}
        saved[name] = {"machine": where, "rows": rows}
        SAVED.write_text(json.dumps(dict(sorted(saved.items())), indent=1) + "\n")
