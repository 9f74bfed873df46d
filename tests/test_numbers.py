"""Numbers in the chapters' prose: a cell of the chapter has each of them, or a reason why none does is written here."""

import functools
import json
import re
from pathlib import Path

import pytest
from needs import missing

from bayesprompt import catalog
from bayesprompt.lab.experiment import SCALES

EXECUTED = Path(__file__).resolve().parents[1] / "build" / "executed"
BOOK = Path(__file__).resolve().parents[1] / "book"
CHAPTERS = sorted(str(p.relative_to(BOOK).with_suffix("")) for p in BOOK.glob("**/*.ipynb") if "_" not in p.parts[-2])

# Decimals, numbers of three digits or more, and percentages; not years, sections, addresses, code.
NUMBER = re.compile(r"(?<![\w.^{/-])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+|\d{3,}|\d+(?= ?%))(?![\w]|\.\d)")
NO_NUMBERS = re.compile(
    r"```.*?```|^ {4}[^\n]*|`[^`]*`|\]\([^)]*\)|<[^>]+>|https?://\S+|\\tag\{[^}]*\}"
    r"|(?:Figure|Section|Table|Eq\.|Equation|Theorem|Lemma|Appendix|arXiv[: ]|Python)s? *[\d.]+(?: and [\d.]+)?",
    re.DOTALL | re.MULTILINE,
)
YEAR = re.compile(r"(?:19|20)\d\d")
DIGITS = re.compile(r"(?<![\w.])\d+(?:[,_]\d{3})*(?:\.\d+)?(?:e-?\d+)?")

PAPER = "the paper's own number"
ONCE = "measured once and not stored, as the text says"
SUM = "arithmetic that the text shows"
FACT = "a fact about somebody else's model or paper, with its source"
# Numbers that no cell prints or asserts, and why.
EXPLAINED = {
    "foundations/bayes_predictors": {SUM: "128"},
    "foundations/in_context_learning": {ONCE: "625 0.24 0.04", SUM: "0.025"},
    "foundations/meta_learning": {SUM: "0.69"},
    "mechanism/eliciting_skills": {PAPER: "94.1 83.7 99.6 99.8", ONCE: "0.8 6.8 2.4 94", SUM: "14 18"},
    "mechanism/language_model": {FACT: "576 270"},
    "mechanism/limits_in_a_language_model": {FACT: "49,152", SUM: "4800"},
    "mechanism/longer_prefixes": {PAPER: "8.2 39.6 99.8 34.5 71.6", SUM: "3.73"},
    "mechanism/sorting": {PAPER: "91.4 84.9", ONCE: "5.26 6.88 5.27", SUM: "2.3"},
    "mechanism/virtual_tokens": {FACT: "1568 99", SUM: "2.5 53.3 0.037"},
    "practice/from_coins_to_language_models": {SUM: "1.8 0.18"},
    "practice/performance": {FACT: "134.5 513", SUM: "768 7.5 70", ONCE: "1.6"},
    "prompting/ablations": {ONCE: "0.17", FACT: "50,257", SUM: "126 768 70,000"},
    "prompting/novel_tasks": {SUM: "258 010101"},
    "prompting/tuning_methods": {SUM: "65,536"},
    "prompting/untrained_networks": {SUM: "384"},
    "theory/bernoulli_mixtures": {SUM: "0.327 0.16 0.004"},
    "theory/countable_mixtures": {SUM: "0.118 0101"},
    "theory/solomonoff": {SUM: "256 0.0078"},
}


@functools.cache
def settings() -> frozenset[float]:
    """Every number in the configurations of all cells, sweeps included."""
    found: set[float] = set()
    for name in catalog.EXPERIMENTS:
        for scale in SCALES:
            for cell in catalog.cells(name, scale=scale):
                found |= numbers(json.dumps(cell.config()))
    return frozenset(found)


def numbers(text: str) -> set[float]:
    return {float(re.sub("[,_]", "", word)) for word in DIGITS.findall(text)}


def computed(cells: list[dict]) -> set[float]:
    """The numbers in code, in what it printed, and in captions."""
    found = set(settings())
    for cell in cells:
        if cell["cell_type"] == "code":
            found |= numbers("".join(cell["source"])) | numbers(json.dumps(cell["metadata"].get("mystnb", {})))
            for output in cell["outputs"]:
                texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k[:5] == "text/")]
                found |= {x for text in texts for x in numbers(re.sub(r"data:image[^\"']+", "", "".join(text)))}
    return found


def stands(word: str, among: set[float]) -> bool:
    """Whether one of some numbers, or a hundred times it, rounds to this one."""
    value, unit = float(word.replace(",", "")), 0.5 * 10.0 ** -len(word.partition(".")[2])
    return any(abs(factor * x - value) <= unit * (1 + 1e-9) for x in among for factor in (1, 100))


def prose(cells: list[dict]) -> list[str]:
    return [NO_NUMBERS.sub(" ", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]


def unguarded(cells: list[dict]) -> list[str]:
    known = computed(cells)
    words = [word for text in prose(cells) for word in NUMBER.findall(text) if not YEAR.fullmatch(word)]
    return list(dict.fromkeys(word for word in words if not stands(word, known)))


@pytest.mark.parametrize("name", CHAPTERS)
def test_numbers_in_prose_are_computed_in_the_chapter_or_explained(name):
    path = (EXECUTED / name).with_suffix(".ipynb")
    if not path.exists():
        missing("the chapters are not executed: `make book`")
    cells = json.loads(path.read_text())["cells"]
    explained = " ".join(EXPLAINED.get(name, {}).values()).split()
    assert [word for word in unguarded(cells) if word not in explained] == []
    assert [word for word in explained if word not in " ".join(prose(cells))] == [], "explained, but not there"


def test_a_number_that_no_cell_has_is_found():
    code = {"cell_type": "code", "source": ["print(x)"], "metadata": {}, "outputs": [{"text": ["0.3712\n"]}]}
    text = "It is 0.37 nats ([2021](https://a.b/123)), not 0.38, in 37 % of 2,047 cases since 1997; see Figure 10.2."
    assert unguarded([{"cell_type": "markdown", "source": [text]}, code]) == ["0.38", "2,047"]
