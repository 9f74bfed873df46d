"""The byte-level BPE tokeniser of a GGUF file, built with the package tokenizers."""

from typing import Any, NamedTuple

from bayesprompt.files import RefusedFileError
from bayesprompt.models.language_model import Settings, in_one_line


class Form(NamedTuple):
    """How a tokeniser divides text before it merges bytes."""

    digits: bool = False  # each is a word of its own
    pattern: str | None = None  # of the words; None for GPT-2's
    whole_words: bool = False  # a word that is a token is not merged


FORMS = {
    "smollm": Form(digits=True),
    "gpt-2": Form(),
    "llama-bpe": Form(
        pattern=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        whole_words=True,
    ),
}
_PLAIN, _CONTROL, _ADDED, _UNUSED = 1, 3, 4, 5  # types of tokens: learned, special, added by hand, never used


def make_tokenizer(settings: Settings) -> Any:
    """Take the vocabulary and the merges out of a file's settings, and build the tokeniser.

    Raises RefusedFileError where they are missing or no byte-level BPE of a form that is known.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    path, take = settings.path, lambda name: settings.take(f"tokenizer.ggml.{name}")
    if (kind := take("model")) != "gpt2":
        raise settings.refusal("tokenizer.ggml.model", kind, "'gpt2' (byte-level BPE)")
    if not isinstance(name := take("pre"), str) or name not in FORMS:
        raise settings.refusal("tokenizer.ggml.pre", name, f"one of {', '.join(FORMS)}")
    tokens, merges, types = (take(name) for name in ("tokens", "merges", "token_type"))
    if not isinstance(tokens, list) or len(tokens) != len(set(tokens)):
        raise RefusedFileError(f"{path} = tokenizer.ggml.tokens: must be a list of different ones")
    if not isinstance(types, list) or len(types) != len(tokens) or set(types) - {_PLAIN, _CONTROL, _ADDED, _UNUSED}:
        raise RefusedFileError(f"{path} = tokenizer.ggml.token_type: must be 1, 3, 4 or 5, one for each token")
    form = FORMS[name]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if form.digits else []
    steps += [pre_tokenizers.Split(Regex(form.pattern), "isolated")] if form.pattern else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=form.pattern is None))
    try:
        vocabulary, pairs = {token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ", 1)) for m in merges]
        tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=form.whole_words))
    except Exception as error:  # merges of tokens that do not exist, say
        raise RefusedFileError(f"{path} = tokenizer.ggml.merges: must fit the tokens: {in_one_line(error)}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, add in ((_CONTROL, tokenizer.add_special_tokens), (_ADDED, tokenizer.add_tokens)):
        these = [token for token, its in zip(tokens, types, strict=True) if its == kind]
        add([AddedToken(token, special=kind == _CONTROL, normalized=False) for token in these])
        for token in these:
            found = tokenizer.encode(token, add_special_tokens=False).ids
            if found != [vocabulary[token]] or tokenizer.decode(found, skip_special_tokens=False) != token:
                raise RefusedFileError(f"{path} = token {token!r:.80} of type {kind}: must be read and written whole")
    return tokenizer
