"""The task: sums of two numbers below 100, whose answers can be checked exactly.

The text the base model learns from has two writers. One writes answers as everyone does; the
other writes their digits backward. So the base model knows how to add, and hesitates between two
ways to write what it knows. The reward is for the usual way only. This is the kind of change that
reinforcement learning makes to large models too: it brings out one of the behaviors that the base
already has.
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
"""The vocabulary: the id of a token is its place in this string."""

PROMPT_LENGTH: Final = len("47+85=")
ANSWER_LENGTH: Final = len("132")

_TERMS: Final = 100
_TOKEN_IDS: Final = {symbol: token_id for token_id, symbol in enumerate(SYMBOLS)}


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum to be done.

    Attributes:
        left: The first term, from 0 to 99.
        right: The second term, from 0 to 99.
    """

    left: int
    right: int

    @property
    def prompt(self) -> str:
        """The question, as in ``07+85=``: every prompt has the same length."""
        return f"{self.left:02d}+{self.right:02d}="

    @property
    def answer(self) -> str:
        """The right answer, as in ``092``: every answer has the same length."""
        return f"{self.left + self.right:03d}"


def split_sums(held_out: int, seed: int) -> tuple[list[Sum], list[Sum]]:
    """Split all sums into those to train on and those to evaluate on.

    Both orders of two terms fall on the same side, or the model could have seen the answer to a
    held-out sum. Only one of them is evaluated: the errors of the two are not independent, as the
    standard errors assume.

    Args:
        held_out: How many sums to evaluate on.
        seed: Decides which.

    Returns:
        The sums to train on and the sums held out.
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
    """Every sum with its right answer, once from each of the two writers."""
    return [
        problem.prompt + answer
        for problem in sums
        for answer in (problem.answer, problem.answer[::-1])
    ]


def reward(prompt: str, answer: str) -> float:
    """Check an answer: 1 if it is the sum, written in the usual way, and 0 if not."""
    left, right = prompt.removesuffix("=").split("+")
    return float(answer == Sum(int(left), int(right)).answer)


def encode(text: str) -> list[int]:
    """The token ids of a text, one for each character."""
    return [_TOKEN_IDS[symbol] for symbol in text]


def decode(token_ids: Sequence[int]) -> str:
    """The text of some token ids."""
    return "".join(SYMBOLS[token_id] for token_id in token_ids)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer that is saved beside a model; it does what :func:`encode` does."""
    # Not at the top of the module: the rest of it does without these.
    from tokenizers import Tokenizer, decoders, models  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    # Byte-pair encoding that merges nothing leaves single characters.
    tokenizer = Tokenizer(models.BPE(vocab=_TOKEN_IDS, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=PROMPT_LENGTH + ANSWER_LENGTH
    )


def _swap(problem: Sum) -> Sum:
    return Sum(problem.right, problem.left)
