"""Claims of Petrov et al. (2024) on what virtual tokens and prefixes can do: constructions, and Tables 1 to 3."""

from collections.abc import Iterator

from bayesprompt.lab.judging import Claim, Part, Results, exact_claims
from bayesprompt.mechanism import claims_inside as prefixes
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
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


_EXACT = exact_claims(  # tests/mechanism/test_exact_claims.py computes them
    {
        "P1": "One virtual token generates any of V^N sequences, one real token at most V.",
        "P2": "One virtual token realises any map of a token.",
        "P3": "Several virtual tokens realise any map to sequences.",
        "P4": "Two layers and one virtual token realise any map of two tokens.",
    }
)
CLAIMS: dict[str, Claim] = _EXACT | {
    "P7": ("One row cannot turn a sorter around (Table 1).", "paper", _p7),
    "P8": ("One row elicits any of four skills (Table 2).", "paper", _p8),
    "P9": ("Longer prefixes combine skills, and learn no new attention (Table 3).", "paper", _p9),
    "P10": ("LoRA with as many parameters learns what a prefix cannot.", "paper", _p10),
}
CLAIMS |= prefixes.CLAIMS
