"""Claims of Petrov et al. (2024) on a real language model, from its stored cells."""

from collections.abc import Iterator

from bayesprompt.lab.judging import Claim, Part, Results
from bayesprompt.mechanism.language.one_token import reached_by_length

RELATIVE = 1e-4  # float32 through 30 layers
_PREFIXES = {"language-model-labels": "10 rows", "language-model-labels-1": "1 row"}


def _errors(results: Results, name: str) -> Iterator[tuple[str, float | None]]:
    """Yield the largest of an error over layers and heads, for tuned and for drawn prefixes of both lengths."""
    for experiment, size in _PREFIXES.items():
        dataset = results.cell(experiment, "llama", "PrefixTuning")
        for index, rows in enumerate(("tuned", "drawn")):
            yield f"{rows}, {size}", None if dataset is None else float(dataset[f"{name}_error"].values[index].max())


def _p5b(results: Results) -> Iterator[Part]:
    for which, error in _errors(results, "content"):
        yield Part(f"every layer and head: content attention with and without prefix ({which})", error, "<=", RELATIVE)


def _p6b(results: Results) -> Iterator[Part]:
    for which, error in _errors(results, "bias"):
        yield Part(f"every layer and head: outputs against bias and what is kept ({which})", error, "<=", RELATIVE)
    for which, error in _errors(results, "rank"):
        yield Part(f"every layer and head: singular value n_S + 1 of the bias ({which})", error, "<=", RELATIVE)


def _p13(results: Results) -> Iterator[Part]:
    soft, hard = (results.cell("language-model-one-token", "llama", method) for method in ("SoftPT", "HardPT"))
    most = None
    if soft is not None and hard is not None:
        shares = [{n: r.mean() for n, r in reached_by_length(each).items()} for each in (soft, hard)]
        most = float(max(shares[0][n] - shares[1][n] for n in shares[0] if n >= 4))
    yield Part(
        "targets reached by one soft token less by the best hard one, largest share at 4 tokens or more",
        most,
        ">=",
        0.5,
    )


CLAIMS: dict[str, Claim] = {
    "P5b": ("A prefix rescales content attention in every layer and head of a language model (Eq. 6).", "paper", _p5b),
    "P6b": ("A prefix adds a bias of low rank to every head of a language model (Eq. 7).", "paper", _p6b),
    "P13": ("One soft token commands more texts of a language model than one hard token.", "paper", _p13),
}
