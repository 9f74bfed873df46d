"""Tokenisers of GGUF files against references, on 2,000 strings that record_tokens.py drew and divided."""

import json
from pathlib import Path

import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.language_model import LanguageModel, Settings
from bayesprompt.models.tokenizer import FORMS, make_tokenizer

with np.load(Path(__file__).with_name("tokens.npz")) as recorded:
    RECORDED = dict(recorded)
TEXTS, TOKENS, MERGES = json.loads(RECORDED["given"].tobytes())
BYTES = TOKENS[:256]
SPECIAL = {"<think>": 4, "<|end|>": 3, "<|end|>\n\n": 4, "  \t": 4}


def build(form="gpt-2", tokens=TOKENS, merges=MERGES, **changes):
    given = {"model": "gpt2", "pre": form, "tokens": tokens, "merges": merges, "token_type": [1] * len(tokens or [])}
    given = {f"tokenizer.ggml.{name}": value for name, value in (given | changes).items()}
    return make_tokenizer(Settings(Path("file.gguf"), given))


def written(tokenizer, text):
    return [tokenizer.id_to_token(i) for i in tokenizer.encode(text).ids]


@pytest.mark.parametrize("form", FORMS)
def test_two_thousand_strings_are_divided_as_the_reference_does(form):
    tokenizer, ends = build(form), np.cumsum(RECORDED[f"{form} lengths"])
    assert len(TEXTS) == len(ends) == 2000
    for text, ids in zip(TEXTS, np.split(RECORDED[f"{form} ids"], ends[:-1]), strict=True):
        assert tokenizer.encode(text).ids == ids.tolist(), text
        assert tokenizer.decode(ids.tolist()) == text


def test_the_references_differ_from_each_other_often():
    """Else the test above could not tell which of them was built."""
    counted = {form: RECORDED[f"{form} lengths"] for form in FORMS}
    assert min((counted[a] != counted[b]).sum() for a, b in (FORMS.keys() - {x} for x in FORMS)) > 200


@pytest.mark.parametrize(("form", "wanted"), [("llama-bpe", ["hello"]), ("gpt-2", ["he", "l", "l", "o"])])
def test_a_word_that_is_a_token_is_looked_up_before_merging_where_the_form_says_so(form, wanted):
    tokenizer = build(form, [*BYTES, "he", "hey", "hello"], ["h e", "he y"])
    assert written(tokenizer, "hello") == wanted
    assert written(tokenizer, "hey") == ["hey"]


@pytest.mark.parametrize("form", FORMS)
def test_control_and_user_defined_tokens_are_found_whole_wherever_their_ids_are(form):
    tokens = [*BYTES[:9], *SPECIAL, *BYTES[9:], "he"]
    tokenizer = build(form, tokens, ["h e"], token_type=[SPECIAL.get(token, 1) for token in tokens])
    text = "he<think>he <|end|><|end|>\n\nx  \t<|no|>"
    found = written(tokenizer, text)
    assert found[:7] == ["he", "<think>", "he", "Ġ", "<|end|>", "<|end|>\n\n", "x"]  # the longest counts
    assert found[7] == "  \t" and "".join(found[8:]) == "<|no|>" and len(found) == 14
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {token: kind == 3 for token, kind in SPECIAL.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model 'llama': must be 'gpt2'"),
        ({"pre": None}, "tokenizer.ggml.pre None: must be one of smollm, gpt-2, llama-bpe"),
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre 'deepseek-llm': must be one of"),
        ({"tokens": None}, "tokens: must be a list of different ones"),
        ({"tokens": [*TOKENS[:-1], "h"]}, "tokens: must be a list of different ones"),
        ({"merges": None}, "merges: must fit the tokens"),
        ({"merges": ["h \u1234"]}, "merges: must fit the tokens"),
        ({"merges": ["he"]}, "merges: must fit the tokens"),
        ({"token_type": [1, 1]}, "token_type: must be 1, 3, 4 or 5, one for each token"),
        ({"token_type": [6] + [1] * 1199}, "token_type: must be 1, 3, 4 or 5"),
        ({"tokens": [*BYTES, "é!"], "merges": [], "token_type": [1] * 256 + [4]}, "token 'é!' of type 4: must be read"),
        ({"tokens": [*BYTES, ""], "merges": [], "token_type": [1] * 256 + [3]}, "token '' of type 3: must be read"),
    ],
)
def test_what_makes_no_tokeniser_is_refused_in_one_line(changes, message):
    with pytest.raises(RefusedFileError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("file.gguf = ")


def test_a_model_without_a_tokeniser_says_so():
    with pytest.raises(
        UserError, match="^tokenizer = None: must be in somewhere, and the package tokenizers installed"
    ):
        LanguageModel(None, {}, None, Path("somewhere")).encode("text")
