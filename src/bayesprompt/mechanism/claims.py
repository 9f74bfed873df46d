"""Claims of Petrov et al. (2024) on what prompts and prefixes can do: constructions, tables, a language model."""

from collections.abc import Iterator

from bayesprompt.lab.judging import Claim, Part, Results, exact_claims
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
from bayesprompt.mechanism.language.one_token import share_reached
from bayesprompt.sources.digits import PRETRAINING_TASKS, TASKS


def _accuracy(results: Results, experiment: str, method: str, tuned: str | None, task: str) -> float | None:
    """Return the share of held-out inputs answered as `task`, after tuning to `tuned` (None: the network itself)."""
    dataset = results.cell(experiment, "gpt", method)
    if dataset is None:
        return None
    row = 0 if tuned is None else DIGIT_EXPERIMENTS[experiment].tasks.index(tuned)
    return float(dataset.accuracy[row, TASKS.index(task)])


def _p7(results: Results) -> Iterator[Part]:
    asc, desc = "ascending", "descending"
    for label, cell, task, relation, bound in (
        ("pretrained, ascending", ("sorting-pretraining", "Pretrained", None), asc, ">=", 0.85),
        ("fully tuned, descending", ("sorting", "FullWT", desc), desc, ">=", 0.75),
        ("prefix, descending", ("sorting", "PrefixTuning", desc), desc, "<=", 0.01),
    ):
        yield Part(f"accuracy: {label}", _accuracy(results, *cell, task), relation, bound)


def _p8(results: Results) -> Iterator[Part]:
    for task in PRETRAINING_TASKS:
        value = _accuracy(results, "eliciting-skills-pretraining", "Pretrained", None, task)
        yield Part(f"accuracy: pretrained, {task}", value, ">=", 0.05)
        yield Part(f"accuracy: pretrained, {task}", value, "<=", 0.45)
    for tuned in PRETRAINING_TASKS:
        found = [_accuracy(results, "eliciting-skills", "PrefixTuning", tuned, task) for task in PRETRAINING_TASKS]
        own = PRETRAINING_TASKS.index(tuned)
        others = None if None in found else max(found[:own] + found[own + 1 :])
        yield Part(f"accuracy: prefix for {tuned}, on it", found[own], ">=", 0.8)
        yield Part(f"accuracy: prefix for {tuned}, best of the others", others, "<=", 0.02)


def _p9(results: Results) -> Iterator[Part]:
    for task in PRETRAINING_TASKS:
        value = _accuracy(results, "longer-prefixes", "PrefixTuning", task, task)
        yield Part(f"accuracy: prefix for {task}", value, ">=", 0.98)
    for task, relation, bound in (("ascending + 1", ">=", 0.25), ("double histogram", "<=", 0.02)):
        value = _accuracy(results, "longer-prefixes-new-tasks", "PrefixTuning", task, task)
        yield Part(f"accuracy: prefix for {task}", value, relation, bound)


def _p10(results: Results) -> Iterator[Part]:
    task = "double histogram"
    yield Part("accuracy: LoRA of rank 1", _accuracy(results, "lora-control", "LoRAWT", task, task), ">=", 0.8)
    yield Part("accuracy: prefix", _accuracy(results, "lora-control", "PrefixTuning", task, task), "<=", 0.02)


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
        shares, others = share_reached(soft), share_reached(hard)
        most = max(share - others[n] for n, share in shares.items() if n >= 4)
    label = "targets reached by one soft token less by the best hard one, largest share at 4 tokens or more"
    yield Part(label, most, ">=", 0.5)


_EXACT = exact_claims(  # tests/mechanism/test_exact_claims.py computes them
    {
        "P1": "One virtual token generates any of V^N sequences, one real token at most V.",
        "P2": "One virtual token realises any map of a token.",
        "P3": "Several virtual tokens realise any map to sequences.",
        "P4": "Two layers and one virtual token realise any map of two tokens.",
    }
)
CLAIMS: dict[str, Claim] = _EXACT | {
    "P7": ("Full tuning turns a sorter around, a tuned prefix row does not (Table 1).", "paper", _p7),
    "P8": ("One row elicits any of four skills (Table 2).", "paper", _p8),
    "P9": ("Longer prefixes combine skills, and learn no new attention (Table 3).", "paper", _p9),
    "P10": ("LoRA with as many parameters learns what a prefix cannot.", "paper", _p10),
    "P5b": ("A prefix rescales content attention in every layer and head of a language model (Eq. 6).", "paper", _p5b),
    "P6b": ("A prefix adds a bias of low rank to every head of a language model (Eq. 7).", "paper", _p6b),
    "P13": ("One soft token commands more texts of a language model than one hard token.", "paper", _p13),
}
