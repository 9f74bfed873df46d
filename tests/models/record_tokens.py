"""Records how reference tokenisers divide 2,000 strings of all scripts, for test_tokenizer.py: tokens.npz.

Run by a Python that has tokenizers, transformers, tiktoken and regex, which the project does not need otherwise; the
file that is there came from tokenizers 0.23.3, transformers 5.23.0, tiktoken 0.14.0 and regex 2026.11.19. The
vocabulary is learned from the strings themselves without any division, so that merges cross every border that a
tokeniser may draw. The references share no code with what is tested but the merging of bytes in the first:

    gpt-2      transformers' GPT2Tokenizer
    llama-bpe  tiktoken, with the pattern of Llama 3
    smollm     each number sign by itself, then the pattern that OpenAI published with GPT-2, then merges one at a time
"""

import json
import random
import sys
import unicodedata
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np

NUMBER, SIZE = 2000, 1200
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACES = [" "] * 8 + ["  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\t\t", "\u00a0", "\u2003", "\u3000"]
SPACES += ["\u2028", "\u0085", "\u200b", ""]
WORDS = "the of and he hey hello world it we you can't I'll they've DON'T We'Re x's 're 'S ’s l'été o'd 'tis".split()
MARKS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»—…“”„¿¡§°€£¥×÷±≤∑√∞→★♪") + [
    "...",
    "->",
    "==",
    "//",
    "'''",
    "';",
    "!?\n",
]
EMOJI = ["🙂", "👩\u200d👩\u200d👧", "🇫🇷", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3", "🏴\U000e0067\U000e0062\U000e007f"]
NUMBERS = [
    "0",
    "7",
    "12",
    "345",
    "6789",
    "12345678",
    "3.14",
    "1,000",
    "1e-5",
    "½",
    "²",
    "Ⅷ",
    "①",
    "٣٤",
    "１２",
    "x2",
    "२०२५",
]


def scripts() -> dict[str, list[str]]:
    """Return letters and marks by script: by the first word of their names."""
    found = defaultdict(list)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character)[0] in "LMN":
            found[unicodedata.name(character, "none").split()[0]].append(character)
    return {name: characters for name, characters in found.items() if len(characters) >= 20}


def strings() -> list[str]:
    """Draw the strings: words of one script or several, numbers, marks, emoji, control characters, all spaces."""
    draw, each = random.Random(0), list(scripts().values())

    def piece() -> str:
        kind = draw.random()
        if kind < 0.45:
            letters = draw.choice(each)
            return "".join(draw.choice(letters) for _ in range(draw.randrange(1, 6)))
        if kind < 0.97:
            return draw.choice(draw.choice((WORDS, WORDS, NUMBERS, MARKS, EMOJI)))
        return chr(draw.choice((*range(32), 127, 0x301, 0xAD, 0xFEFF, 0xFFFD, 0xE000, 0x10FFFD)))

    return ["".join(piece() + draw.choice(SPACES) for _ in range(draw.randrange(1, 7))) for _ in range(NUMBER)]


def learn(texts: list[str]) -> tuple[list[str], list[str]]:
    """Return the vocabulary, bytes first, and its merges: every way to divide a token into two, in their order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, max_token_length=8, show_progress=False)
    )
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted(
            (pair for pair in halves if set(pair) <= set(ids)), key=lambda pair: [ids[half] for half in pair]
        )
    return tokens, [" ".join(pair) for pair in merges]


def merge(word: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge neighbours one at a time, those first that were learned first."""
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]:
        _, i = min(pairs)
        word = [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]
    return word


def main() -> None:
    """Run the references and write the file beside this script."""
    import regex
    import tiktoken
    from transformers import GPT2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    texts = strings()
    tokens, merges = learn(texts)
    vocabulary, spelling = {token: i for i, token in enumerate(tokens)}, bytes_to_unicode()
    ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(merges)}

    gpt2 = GPT2Tokenizer(vocabulary, [tuple(pair.split(" ")) for pair in merges])
    back = {character: byte for byte, character in spelling.items()}
    llama3 = tiktoken.Encoding(
        "llama3",
        pat_str=LLAMA3,
        mergeable_ranks={bytes(back[character] for character in token): i for token, i in vocabulary.items()},
        special_tokens={},
    )

    def smollm(text: str) -> list[int]:
        found = []
        for part in regex.split(r"(\p{N})", text):
            for word in regex.findall(GPT2, part):
                found += [vocabulary[token] for token in merge([spelling[byte] for byte in word.encode()], ranks)]
        return found

    references = {
        "gpt-2": lambda text: gpt2(text, add_special_tokens=False)["input_ids"],
        "llama-bpe": lambda text: llama3.encode(text, disallowed_special=()),
        "smollm": smollm,
    }
    found = {"given": np.frombuffer(json.dumps([texts, tokens, merges]).encode(), np.uint8)}
    for name, encode in references.items():
        ids = [encode(text) for text in texts]
        found[f"{name} ids"] = np.array([i for row in ids for i in row], np.uint16)
        found[f"{name} lengths"] = np.array([len(row) for row in ids], np.uint16)
    np.savez_compressed(Path(__file__).with_name("tokens.npz"), **found)


if __name__ == "__main__":
    main()
