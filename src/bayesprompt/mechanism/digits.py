"""The sorting experiments (Section 5, Tables 1 to 3) as data: networks, tasks, methods, scales."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bayesprompt.models.gpt import GPT
from bayesprompt.sources.digits import PRETRAINING_TASKS, SIZE
from bayesprompt.tuning.fitting import AdamWConfig

LENGTH = 2 * SIZE
# The dense layers that LoRA runs beside: those that write to the residual stream, and the MLP's first.
LORA_BESIDE = ("attention_output", "mlp_in", "mlp_out")
LORA_RANK = 1


class Training(NamedTuple):
    """Optimisation steps and learning rate, at paper scale."""

    steps: int
    learning_rate: float


class DigitScale(NamedTuple):
    """How much is computed: a share of the paper's steps, at most so many, and how many inputs judge the answers."""

    share: float
    most: int
    batch: int
    inputs: int
    prefix_rate: float = 1.0  # learning rates of prefixes, as a multiple of the paper's
    lora_share: float | None = None  # of LoRA's steps
    width: int | None = None  # for a small network: also at most two layers


# At quick scale prefixes learn twenty times as fast, in fewer steps; else they would stay where they start. LoRA gets
# as many steps there as the prefix beside it.
DIGIT_SCALES = {
    "smoke": DigitScale(0.0005, 20, 16, 64, width=16),
    "quick": DigitScale(0.05, 2000, 64, 800, prefix_rate=20.0, lora_share=0.2),
    "paper": DigitScale(1.0, 500_000, 64, 3200),
}


@dataclass(frozen=True)
class DigitExperiment:
    """A network trained on tasks, or tuned to each of them by itself; the chapter that shows it."""

    title: str
    figures: str
    chapter: str
    sizes: GPT
    tasks: tuple[str, ...]
    trainings: dict[str, Training]  # by method
    base: str | None = None  # the experiment whose network is tuned; None: this one makes a network
    network: str = "Pretrained"

    def methods_on(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture."""
        return tuple(self.trainings) if architecture == "gpt" else ()

    def sizes_on(self, architecture: str, scale: str) -> GPT:
        """Return the network's sizes at a scale."""
        return sizes_at(self, scale)

    def repetitions_of(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one for each task that is tuned to."""
        return len(self.tasks) if self.base else 1

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        config = {
            "sizes": {"type": architecture, **asdict(sizes_at(self, scale))},
            "tasks": list(self.tasks),
            "fit": asdict(training_at(self, method, scale)),
            "inputs": DIGIT_SCALES[scale].inputs,
        }
        if method == "LoRAWT":
            config |= {"rank": LORA_RANK, "beside": list(LORA_BESIDE)}
        return config | ({"network": network_hash} if self.base else {})


_ONE_HEAD = GPT(embed_dim=96, num_heads=1, num_layers=1, pads=1)
_ONE_LAYER = GPT(num_layers=1, pads=1, first_norm=False)
_FOUR_LAYERS = GPT(pads=10)
_MORE_PADS = GPT(pads=12)


def _pair(
    name: str, title: str, figures: str, chapter: str, sizes: GPT, steps: int, learned: tuple[str, ...],
    tuned: dict[str, tuple[tuple[str, ...], dict[str, Training]]],
) -> dict[str, DigitExperiment]:  # fmt: skip
    """Return a base network's experiment and those that tune it: name -> (tasks, trainings)."""
    base = f"{name}-pretraining"
    pretraining = {"Pretrained": Training(steps, 5e-4)}
    made = {base: DigitExperiment(f"{title}: the network", figures, chapter, sizes, learned, pretraining)}
    for experiment, (tasks, trainings) in tuned.items():
        words = f"{title}: {', '.join(tasks)}"
        made[experiment] = DigitExperiment(words, figures, chapter, sizes, tasks, trainings, base)
    return made


DIGIT_EXPERIMENTS = {
    **_pair(
        "sorting", "A sorter of digits", "Table 1 and Figure 1", "mechanism/sorting", _ONE_HEAD, 20_000,
        ("ascending",),
        {"sorting": (("descending",), {"FullWT": Training(10_000, 5e-4), "PrefixTuning": Training(40_000, 5e-4)})},
    ),
    **_pair(
        "eliciting-skills", "Four skills in one layer", "Table 2 and Figures 2 and 3", "mechanism/eliciting_skills",
        _ONE_LAYER, 20_000, PRETRAINING_TASKS,
        {"eliciting-skills": (PRETRAINING_TASKS, {"PrefixTuning": Training(30_000, 5e-5)})},
    ),
    **_pair(
        "longer-prefixes", "Four layers, prefixes of ten rows", "Table 3 and Figure 7", "mechanism/longer_prefixes",
        _FOUR_LAYERS, 40_000, PRETRAINING_TASKS,
        {
            "longer-prefixes": (PRETRAINING_TASKS, {"PrefixTuning": Training(20_000, 5e-5)}),
            "longer-prefixes-new-tasks": (
                ("ascending + 1", "double histogram"), {"PrefixTuning": Training(500_000, 5e-5)}
            ),
        },
    ),
    **_pair(
        "lora-control", "As many parameters in LoRA", "Section 5.3", "mechanism/longer_prefixes", _MORE_PADS, 40_000,
        PRETRAINING_TASKS,
        {
            "lora-control": (
                ("double histogram",), {"PrefixTuning": Training(100_000, 5e-5), "LoRAWT": Training(10_000, 5e-3)}
            )
        },
    ),
}  # fmt: skip


def sizes_at(experiment: DigitExperiment, scale: str) -> GPT:
    """Return the network's sizes at a scale."""
    sizes, width = experiment.sizes, DIGIT_SCALES[scale].width
    return sizes if width is None else replace(sizes, embed_dim=width, num_layers=min(2, sizes.num_layers))


def training_at(experiment: DigitExperiment, method: str, scale: str) -> AdamWConfig:
    """Return the settings of a method's training at a scale (weight decay and dropout as in the public code)."""
    training, at = experiment.trainings[method], DIGIT_SCALES[scale]
    whole = method in ("Pretrained", "FullWT")
    share = at.lora_share if method == "LoRAWT" and at.lora_share else at.share
    return AdamWConfig(
        steps=min(round(training.steps * share), at.most),
        batch=at.batch,
        length=LENGTH,
        learning_rate=training.learning_rate * (at.prefix_rate if method == "PrefixTuning" else 1.0),
        weight_decay=0.1 if whole else 0.01,
        clip_each=method == "LoRAWT",
        dropout=whole,
    )
