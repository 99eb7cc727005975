"""The task: sums of two numbers below 100, with exactly verifiable answers.

The pretraining text writes half of the answers forward and half of them with reversed digits. The
base model thus learns to add, and is undecided between the two notations. Only the forward
notation is rewarded. As in large models, reinforcement learning brings out a behavior that the
base already has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerFast

__all__ = [
    "ANSWER_LENGTH",
    "PROMPT_LENGTH",
    "SYMBOLS",
    "Sum",
    "decode",
    "encode",
    "new_tokenizer",
    "pretraining_texts",
    "reward",
    "split_sums",
]

SYMBOLS: Final = "0123456789+="
"""The vocabulary. The id of a token is its index in this string."""

PROMPT_LENGTH: Final = len("47+85=")
ANSWER_LENGTH: Final = len("132")

_TERMS: Final = 100
_TOKEN_IDS: Final = {symbol: token_id for token_id, symbol in enumerate(SYMBOLS)}


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum of two terms.

    Attributes:
        left: The first term, from 0 to 99.
        right: The second term, from 0 to 99.
    """

    left: int
    right: int

    @property
    def prompt(self) -> str:
        """The prompt, such as ``07+85=``. All prompts have the same length."""
        return f"{self.left:02d}+{self.right:02d}="

    @property
    def answer(self) -> str:
        """The correct answer, such as ``092``. All answers have the same length."""
        return f"{self.left + self.right:03d}"


def split_sums(held_out: int, seed: int) -> tuple[list[Sum], list[Sum]]:
    """Split all sums into a training set and a held-out set.

    Both orders of two terms are in the same set, so that no held-out answer is trained on. The
    held-out set has one order only, since standard errors assume independent samples.

    Args:
        held_out: Number of held-out sums.
        seed: Seed of the split.

    Returns:
        The training set and the held-out set.
    """
    generator = np.random.default_rng(seed)
    pairs = [Sum(low, high) for low in range(_TERMS) for high in range(low, _TERMS)]
    order = generator.permutation(len(pairs))
    swapped = generator.integers(2, size=held_out)
    held = [
        _swap(pairs[index]) if swap else pairs[index]
        for index, swap in zip(order[:held_out], swapped, strict=True)
    ]
    train = [pairs[index] for index in order[held_out:]]
    train += [_swap(pair) for pair in train if pair.left != pair.right]
    return train, held


def pretraining_texts(sums: Iterable[Sum]) -> list[str]:
    """Every sum with its answer, once forward and once with reversed digits."""
    return [
        problem.prompt + answer
        for problem in sums
        for answer in (problem.answer, problem.answer[::-1])
    ]


def reward(prompt: str, answer: str) -> float:
    """1 if the answer is the sum in forward notation, else 0."""
    left, right = prompt.removesuffix("=").split("+")
    return float(answer == Sum(int(left), int(right)).answer)


def encode(text: str) -> list[int]:
    """The token ids of a text, one per character."""
    return [_TOKEN_IDS[symbol] for symbol in text]


def decode(token_ids: Sequence[int]) -> str:
    """The text of some token ids."""
    return "".join(SYMBOLS[token_id] for token_id in token_ids)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer to save with a model, equivalent to :func:`encode`."""
    # Imported here, since the rest of the module does not need them.
    from tokenizers import Tokenizer, decoders, models  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    # Byte-pair encoding without merges yields single characters.
    tokenizer = Tokenizer(models.BPE(vocab=_TOKEN_IDS, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=PROMPT_LENGTH + ANSWER_LENGTH
    )


def _swap(problem: Sum) -> Sum:
    return Sum(problem.right, problem.left)
