"""The reference: its examples run, and it names every public name."""

import doctest
import re
from pathlib import Path

import pytest

import bayesprompt

PAGES = sorted((Path(__file__).resolve().parents[1] / "book" / "reference").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_say_what_they_print(page):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert tried > 3 and failed == 0


def test_every_public_name_is_in_the_reference_with_an_example():
    text = "\n".join(page.read_text() for page in PAGES)
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for name in bayesprompt.__all__:
        assert re.search(rf"^\.\. (auto\w+|py:data):: (bayesprompt\.)?(store\.)?{name}$", text, re.MULTILINE), name
        assert re.search(rf"\b{name}\b", code) or name in (
            "Source",
            "Predictor",
            "Tuner",
            "Store",
            "UserError",
            "llama_from_safetensors",
        ), name


def test_every_public_name_has_a_docstring_in_full_sentences():
    for name in bayesprompt.__all__:
        words = getattr(bayesprompt, name).__doc__ or ""
        assert words.strip().split("\n\n")[0].rstrip().endswith((".", ":")), name
