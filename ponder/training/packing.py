"""Sequences into micro-batches: packed by a token budget, prompts shared, no padding.

A training example is a prompt, which gives no loss, and a reply, which does. Consecutive examples with the same prompt
share its rows, so that the eight or sixteen completions of a group cost one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.model.decoder import Packing


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of a reply; the loss lies on the reply."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    `tokens` (N,) are the rows; `predictors` (M,) the row whose hidden state predicts each reply token, `targets` (M,)
    that token, `sequence_ids` (M,) its example within the micro-batch; `members` the examples' places in the batch.
    """

    packing: Packing
    tokens: Tensor
    predictors: Tensor
    targets: Tensor
    sequence_ids: Tensor
    members: tuple[int, ...]


def micro_batches(examples: Sequence[Example], budget: int) -> Iterator[MicroBatch]:
    """Pack whole examples, in order, into micro-batches of at most `budget` rows (a longer example gets its own).

    Raises `ValueError` for an example without a prompt or a reply.
    """
    members: list[int] = []
    rows = 0
    for index, example in enumerate(examples):
        if not example.prompt_ids or not example.reply_ids:
            raise ValueError(f"example {index} has an empty prompt or reply")
        shares = bool(members) and examples[members[-1]].prompt_ids == example.prompt_ids
        cost = len(example.reply_ids) + (0 if shares else len(example.prompt_ids))
        if members and rows + cost > budget:
            yield _pack(examples, members)
            members, rows = [], 0
            cost = len(example.prompt_ids) + len(example.reply_ids)
        members.append(index)
        rows += cost
    if members:
        yield _pack(examples, members)


def _pack(examples: Sequence[Example], members: Sequence[int]) -> MicroBatch:
    groups: list[tuple[int, list[int]]] = []
    tokens: list[int] = []
    predictors: list[int] = []
    lengths: list[int] = []
    prompt_ids: tuple[int, ...] = ()
    for member in members:
        example = examples[member]
        if example.prompt_ids != prompt_ids:
            prompt_ids = example.prompt_ids
            tokens += prompt_ids
            groups.append((len(prompt_ids), []))
            prompt_end = len(tokens) - 1
        start = len(tokens)
        tokens += example.reply_ids
        groups[-1][1].append(len(example.reply_ids))
        predictors += [prompt_end, *range(start, len(tokens) - 1)]
        lengths.append(len(example.reply_ids))
    return MicroBatch(
        packing=Packing.of_groups(groups),
        tokens=torch.tensor(tokens),
        predictors=torch.tensor(predictors),
        targets=torch.tensor([t for m in members for t in examples[m].reply_ids]),
        sequence_ids=torch.repeat_interleave(torch.arange(len(members)), torch.tensor(lengths)),
        members=tuple(members),
    )
