"""Sequences into micro-batches: packed by a token budget, prompts shared, no padding.

A training example is a prompt, which gives no loss, and a reply, which does. Consecutive examples with the same prompt
share its rows, so that the eight or sixteen completions of a group cost one prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ponder.model.decoder import Packing

_PIECES_A_RANK = 4
"""Where prompts' groups are few and long, each rank's share is made of about so many pieces of them."""


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of a reply; the loss lies on the reply."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]


class Packable(Protocol):
    """What stays together: the rows of a prompt, which neighbours with the same one share, and rows of its own."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def reply_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    `tokens` (N,) are the rows; `predictors` (M,) those whose hidden states the model's head reads, `targets` (M,) what
    it should find there, `sequence_ids` (M,) whose they are, by number within the micro-batch; `members` the examples'
    places in the batch. For a language model there is one target a reply token, that token, and its predictor is the
    row before it.
    """

    packing: Packing
    tokens: Tensor
    predictors: Tensor
    targets: Tensor
    sequence_ids: Tensor
    members: tuple[int, ...]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        return dataclasses.replace(
            self,
            packing=self.packing.to(device),
            tokens=self.tokens.to(device),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            sequence_ids=self.sequence_ids.to(device),
        )

    def by_member(self, values: Tensor) -> dict[int, Tensor]:
        """(M,) numbers, one a target -> (T,) those of each member, on the CPU, by its place."""
        lengths = torch.bincount(self.sequence_ids, minlength=len(self.members)).tolist()
        return dict(zip(self.members, values.cpu().split(lengths), strict=True))


def micro_batches(examples: Sequence[Example], budget: int) -> Iterator[MicroBatch]:
    """Pack whole examples, in order, into micro-batches of at most `budget` rows (a longer example gets its own).

    Raises `ValueError` for an example without a prompt or a reply.
    """
    for members in cut(examples, range(len(examples)), budget):
        yield pack(examples, members)


def cut(examples: Sequence[Packable], order: Iterable[int], budget: int) -> list[list[int]]:
    """The examples' places, taken in `order`, cut into micro-batches as `micro_batches` does."""
    batches: list[list[int]] = []
    rows = 0
    for index in order:
        example = examples[index]
        shares = bool(batches) and examples[batches[-1][-1]].prompt_ids == example.prompt_ids
        cost = len(example.reply_ids) + (0 if shares else len(example.prompt_ids))
        if not batches or rows + cost > budget:
            batches.append([])
            rows, cost = 0, len(example.prompt_ids) + len(example.reply_ids)
        batches[-1].append(index)
        rows += cost
    return batches


def deal(examples: Sequence[Packable], budget: int, ranks: int) -> list[list[int]]:
    """The examples' places for each of `ranks` ranks, so that all get about equally many tokens.

    Examples that share a prompt stay together up to a micro-batch and up to a quarter of a rank's even share; the
    pieces go, longest first, to the rank that has least (Graham, 1969). A function of the arguments alone, so that
    each rank knows what the others do. One rank gets everything in its own order.
    """
    if ranks == 1:
        return [list(range(len(examples)))]
    total = sum(len(e.prompt_ids) + len(e.reply_ids) for e in examples)
    pieces = _pieces(examples, min(budget, math.ceil(total / (_PIECES_A_RANK * ranks))))
    tokens = [_rows(examples, piece) for piece in pieces]
    load = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for place in sorted(range(len(pieces)), key=lambda i: -tokens[i]):
        rank = load.index(min(load))
        load[rank] += tokens[place]
        dealt[rank] += pieces[place]
    return [sorted(places) for places in dealt]


def _pieces(examples: Sequence[Packable], most: int) -> list[list[int]]:
    """Neighbours with one prompt, in pieces of at most `most` rows (a longer example is its own piece)."""
    pieces: list[list[int]] = []
    for index, example in enumerate(examples):
        joins = bool(pieces) and examples[pieces[-1][-1]].prompt_ids == example.prompt_ids
        if joins and _rows(examples, pieces[-1]) + len(example.reply_ids) <= most:
            pieces[-1].append(index)
        else:
            pieces.append([index])
    return pieces


def _rows(examples: Sequence[Packable], piece: Sequence[int]) -> int:
    return len(examples[piece[0]].prompt_ids) + sum(len(examples[i].reply_ids) for i in piece)


def pack(examples: Sequence[Example], members: Sequence[int]) -> MicroBatch:
    """One micro-batch of the examples at these places. Raises `ValueError` where one has no prompt or no reply."""
    groups: list[tuple[int, list[int]]] = []
    tokens: list[int] = []
    predictors: list[int] = []
    lengths: list[int] = []
    prompt_ids: tuple[int, ...] = ()
    for member in members:
        example = examples[member]
        if not example.prompt_ids or not example.reply_ids:
            raise ValueError(f"example {member} has an empty prompt or reply")
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
        sequence_ids=torch.repeat_interleave(
            torch.arange(len(members)), torch.tensor(lengths), output_size=sum(lengths)
        ),
        members=tuple(members),
    )
