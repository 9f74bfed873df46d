"""The byte-level BPE tokeniser of a GGUF file, built with the package tokenizers."""

from pathlib import Path
from typing import Any

from bayesprompt.models.gguf_file import in_one_line
from bayesprompt.store import RefusedFileError

# How the tokenisers that we can build divide text before merging bytes.
_PRETOKENISERS = {
    "smollm": (True, None),
    "gpt-2": (False, None),
    "llama-bpe": (
        False,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


def make_tokenizer(path: Path, fields: dict[str, Any], num_tokens: int) -> Any:
    """Build the byte-level BPE tokeniser from the file's vocabulary and merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    try:
        kind, form = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre"))
        tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
        types = fields["tokenizer.ggml.token_type"].contents()
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise RefusedFileError(f"{path} = without a readable tokeniser ({error}): not used") from None
    if kind != "gpt2" or not isinstance(form, str) or form not in _PRETOKENISERS:
        known, named = ", ".join(_PRETOKENISERS), f"{kind!r:.80} with {form!r:.80}"
        raise RefusedFileError(f"{path} = tokeniser {named}: must be 'gpt2' (byte-level BPE) with one of {known}")
    if not all(isinstance(x, list) and len(x) == num_tokens for x in (tokens, types)):
        raise RefusedFileError(f"{path} = tokens, or their types, that are not {num_tokens}: not used")
    digits, pattern = _PRETOKENISERS[form]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    try:
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    except Exception as error:  # merges of tokens that do not exist, say
        raise RefusedFileError(f"{path} = tokens or merges that make no tokeniser: {in_one_line(error)}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer
