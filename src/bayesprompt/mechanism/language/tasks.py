"""What the language model reads and is tuned to: texts to be reproduced, labelled sentences, flips of a coin."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bayesprompt.checks import UserError
from bayesprompt.models.gguf import LanguageModel
from bayesprompt.sources import Sampler

# Sentences that anyone could have written, and sentences that nobody has; all of at least 12 tokens.
COMMON = (
    "The children played in the park until it was time for dinner at home.",
    "I would like to thank you for your help with the project last week.",
    "She opened the window and looked out at the quiet street below her.",
    "Once upon a time there was a little girl who lived in the woods.",
)
RARE = (
    "Quartz barnacles negotiate lukewarm sonnets beneath a prudent zeppelin of soup.",
    "Seven astringent walruses audited the violet municipal trombone with reluctant glee.",
    "No cathedral hums algebra when marmalade forgets its obsidian umbrella again.",
    "Her molten parliament of staplers dreamed sideways through corduroy thunder.",
)
KINDS = ("common", "rare", "random")
LENGTHS = (1, 2, 4, 8, 12)

GOOD = (
    "wonderful excellent delightful superb lovely brilliant perfect charming amazing great fantastic beautiful".split()
)
BAD = "terrible awful horrible dreadful boring ugly broken disgusting poor bad disappointing useless".split()
THINGS = "film book hotel meal concert game phone course".split()
# The labels' names say nothing: what they mean has to come from the prefix.
TEMPLATE = "The {thing} was {word}. Class:"
LABELS = (" A", " B")
_HELD_OUT = 4  # words of each list, its last ones

FLIPS = (" H", " T")
HEADER = "Flips of a coin:"
# Candidates for heads and tails. The rule: the pair whose `asymmetry` in the untouched model is least.
PAIRS = ((" H", " T"), (" A", " B"), (" X", " Y"), (" a", " b"), (" red", " blue"), (" left", " right"))
FACES = (" left", " right")
# Prompts in plain English, before the header: one that says nothing, true ones of each target, and an instruction.
ENGLISH = (
    "A coin is flipped many times.\n",
    "The coin is biased: heads ({heads}) has probability 0.2, tails ({tails}) has probability 0.8.\n",
    "Tails ({tails}) comes four times as often as heads ({heads}).\n",
    "One of two coins is flipped. With the first, heads ({heads}) has probability 0.2, with the second 0.8.\n",
    "Either most of the flips are heads ({heads}), or most of them are tails ({tails}).\n",
    "The coin may have any bias. Count heads ({heads}) and tails ({tails}) to predict the next flip.\n",
)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens"], meta_fields=["num_tokens"])
@dataclass(frozen=True)
class Texts:
    """Token sequences (B, N) as a source; drawn with replacement, or all in order where as many are asked for."""

    tokens: Int[Array | np.ndarray, "*sources B N"]
    num_tokens: int | None = None  # of the model that reads them

    def sample(self, key: Array, batch: int, length: int) -> tuple[Int[Array, "B N"], None]:
        """Return `batch` of the sequences, their first `length` tokens."""
        tokens = jnp.asarray(self.tokens)[:, :length]
        if batch != len(tokens):
            tokens = tokens[jax.random.randint(key, (batch,), 0, len(tokens), jnp.int32)]
        return tokens, None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["source", "header", "faces"], meta_fields=["num_tokens"]
)
@dataclass(frozen=True)
class WrittenFlips:
    """Flips of a source as text: the header's tokens, then one token for each flip, heads first in `faces`."""

    source: Sampler
    header: Int[Array | np.ndarray, " h"]
    faces: Int[Array | np.ndarray, "2"]
    num_tokens: int | None = None  # of the model that reads them

    def sample(self, key: Array, batch: int, length: int) -> tuple[Int[Array, "B N"], Array | None]:
        """Return sequences of `length` tokens, header included, and the source's latents."""
        flips, latent = self.source.sample(key, batch, length - len(self.header))
        header = jnp.broadcast_to(self.header, (batch, len(self.header)))
        return jnp.concatenate([header, jnp.asarray(self.faces)[flips]], axis=1), latent


class LanguageScale(NamedTuple):
    """How much is computed. The papers have no such experiments: "paper" is the scale at which claims are judged."""

    share: float  # of the steps
    each: int  # targets of each kind and length
    starts: int  # drawn starts of each soft token; the best counts
    lengths: tuple[int, ...]  # of targets
    sequences: int  # of flips that are evaluated
    flips: int  # of each


LANGUAGE_SCALES = {
    "smoke": LanguageScale(0.01, 1, 1, (1, 2), 2, 4),
    "quick": LanguageScale(0.25, 2, 1, (1, 2, 4), 16, 50),
    "paper": LanguageScale(1.0, 4, 2, LENGTHS, 64, 100),
}


class FlipsScale(NamedTuple):
    """How much is computed. The papers have no such experiment: "paper" is the scale at which claims are judged."""

    repetitions: int
    steps: int
    batch: int
    length: int  # flips in tuning and in the search
    trial: int  # steps of a trial of each learning rate; 0: the one in the middle is taken untried
    sequences: int  # that are evaluated
    flips: int  # of each of these
    searched: int  # other sequences, on which prompts and learning rates are chosen
    longest: int  # hard prompt of the search, tokens
    candidates: int  # tokens that are read at each place of it


FLIPS_SCALES = {
    "smoke": FlipsScale(2, 2, 2, 4, 1, 3, 6, 2, 2, 2),
    "quick": FlipsScale(1, 25, 4, 50, 0, 32, 100, 8, 3, 4),
    "paper": FlipsScale(3, 300, 16, 50, 100, 512, 100, 32, 6, 16),
}
TRIED = (1 / 3, 1.0, 3.0)  # learning rates, as multiples of the one in the middle


class Target(NamedTuple):
    """A text that a prompt shall command."""

    kind: str
    tokens: Int[np.ndarray, " N"]


def targets(model: LanguageModel, length: int, each: int) -> list[Target]:
    """Return `each` targets of each kind with this many tokens: starts of sentences, and words drawn uniformly."""
    if not 1 <= length <= max(LENGTHS):
        raise UserError(f"length = {length}: must lie in 1..{max(LENGTHS)}")
    if not 1 <= each <= len(COMMON):
        raise UserError(f"each = {each}: must lie in 1..{len(COMMON)}")
    words = np.setdiff1d(np.arange(model.sizes.num_tokens), [*model.tokenizer.get_added_tokens_decoder()])
    draws = words[np.random.default_rng(0).integers(len(words), size=(each, max(LENGTHS)))]
    rows = [*map(model.encode, COMMON[:each] + RARE[:each]), *draws]
    kinds = [kind for kind in KINDS for _ in range(each)]
    return [Target(kind, np.asarray(row[:length], np.int32)) for kind, row in zip(kinds, rows, strict=True)]


class Labelled(NamedTuple):
    """Sentences of one length that end in their label's token; and which are not trained on."""

    tokens: Int[np.ndarray, "B N"]
    labels: Int[np.ndarray, "2"]
    held_out: Int[np.ndarray, " B"]


def labelled(model: LanguageModel) -> Labelled:
    """Return reviews made from a template that end in their class: those of the length that most have.

    Held out are the reviews with the last four adjectives of each list.
    """
    rows, held_out = [], []
    for label, words in zip(LABELS, (GOOD, BAD), strict=True):
        for index, word in enumerate(words):
            for thing in THINGS:
                rows.append(model.encode(TEMPLATE.format(thing=thing, word=word) + label))
                held_out.append(index >= len(words) - _HELD_OUT)
    size = np.bincount([len(row) for row in rows]).argmax()
    kept = [i for i, row in enumerate(rows) if len(row) == size]
    labels = np.array([model.encode(label)[0] for label in LABELS], np.int32)
    return Labelled(np.stack([rows[i] for i in kept]), labels, np.array(held_out, int)[kept])


def written_flips(model: LanguageModel, source: Sampler, flips: tuple[str, str] = FLIPS) -> WrittenFlips:
    """Return the source's flips as this model's tokens; raises ValueError where a flip is not one token."""
    faces = [model.encode(face) for face in flips]
    if any(len(face) != 1 for face in faces):
        raise UserError(f"flips = {flips}: each must be one token of this model")
    return WrittenFlips(source, model.encode(HEADER), np.concatenate(faces), model.sizes.num_tokens)
