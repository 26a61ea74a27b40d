"""How updates are carried out: on how many ranks, in which arithmetic, and in how large pieces.

One process is the case of one rank, so that a step is written once (`ponder/training/update.py`). Ranks compute the
gradients of different micro-batches and add them up; every number that a step returns is the whole batch's, on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ponder.errors import PonderError, UsageError
from ponder.training.packing import MicroBatch, Packable, cut, deal, pack

_BUCKET_NUMBERS = 1 << 23
"""Gradients summed over ranks in one exchange: 32 MiB of float32."""

T = TypeVar("T")

Pack = Callable[[Sequence[Any], Sequence[int]], MicroBatch]
"""From examples, and the places of those that it is to hold, to a micro-batch."""

_FIRST_SCALE, _STEPS_TO_GROW = 2.0**16, 1000


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that make one update together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Of what ranks exchange; one rank alone exchanges nothing."""
    lockstep: bool = False
    """Whether passes through the model are exchanges themselves (FSDP2), so that all ranks must make equally many."""

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place; the same on all of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Maximum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def collect(self, own: Mapping[int, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Vectors of these lengths, each of which one rank has by its place: all of them, on every rank, on the CPU."""
        whole = torch.zeros(sum(lengths))
        places = whole.split(list(lengths))
        for place, values in own.items():
            places[place].copy_(values)
        # zeros change nothing in a sum
        return list(self.total(whole.to(self.device)).cpu().split(list(lengths)))

    def together(self, action: Callable[[], T]) -> list[T]:
        """Do something on every rank; all ranks' results, in order. Raises on all the `PonderError` that one raised."""
        result, error = None, None
        try:
            result = action()
        except PonderError as caught:
            error = caught
        done: list[Any] = [(result, error)] * self.size
        if self.size > 1:
            dist.all_gather_object(done, (result, error))
        for _, error in done:
            if error is not None:
                raise error
        return [result for result, _ in done]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the ranks' gradients, once a step. Under FSDP2 the backward passes have done so."""
        if self.size == 1 or self.lockstep:
            return
        for parameter in parameters:
            if parameter.grad is None:  # nothing fell to this rank
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def share(self, examples: Sequence[Packable], budget: int, pack: Pack = pack) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's micro-batches, `members` being places in `examples`, and whether each counts.

        In lockstep, a rank that has fewer than another makes up for it with passes that do not count.
        """
        cuts = [cut(examples, places, budget) for places in deal(examples, budget, self.size)]
        for members in cuts[self.rank]:
            yield pack(examples, members), True
        if self.lockstep:
            shortest = min(range(len(examples)), key=lambda i: len(examples[i].prompt_ids) + len(examples[i].reply_ids))
            for _ in range(max(map(len, cuts)) - len(cuts[self.rank])):
                yield pack(examples, [shortest]), False


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (
            gradient.dtype != bucket[0].dtype or sum(map(Tensor.numel, bucket)) + gradient.numel() > _BUCKET_NUMBERS
        ):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


class LossScale:
    """Keeps fp16's small gradients from vanishing (Micikevicius et al., 1710.03740); 1 in any other arithmetic.

    The factor halves, down to 1, when gradients overflow, which costs that step, and doubles after many that did not.
    """

    def __init__(self, fp16: bool) -> None:
        self.fp16 = fp16
        self.value = _FIRST_SCALE if fp16 else 1.0
        self.good_steps = 0
        self.lowered = False
        """Whether the last step made it smaller: its gradients may have overflowed for that reason alone."""

    def observe(self, loss: bool, gradients: bool) -> None:
        """Whether a step's loss and its gradients were finite. The scale is not to blame where the loss was not."""
        self.lowered = self.fp16 and loss and not gradients and self.value > 1
        if not (self.fp16 and loss):
            return
        self.good_steps = self.good_steps + 1 if gradients else 0
        if self.lowered:
            self.value /= 2
        elif gradients and self.good_steps % _STEPS_TO_GROW == 0:
            self.value *= 2


class Execution:
    """What outlives a step: ranks, the loss scale of fp16, and the budget that has proved to fit into memory."""

    def __init__(self, ranks: Ranks | None = None, fp16: bool = False) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self.scale = LossScale(fp16)
        self.limit: int | None = None
        """Tokens of a micro-batch since memory ran out; None while it never has."""
        self.out_of_memory = False
        """Whether it did on this rank, in the attempt under way."""
        self.notes: list[str] = []
        """What a person should know, for whoever drives the trainer to show and clear."""

    def within_memory(self, budget: int, attempt: Callable[[int], int]) -> None:
        """Call `attempt(tokens)`; as long as memory runs out on any rank, again with half as many tokens, on all.

        `attempt` computes within `watching` and returns how many examples the first micro-batch had for which memory
        ran out, 0 where it did not. What it did before must not matter. Raises `UsageError` when that was one example.
        """
        while True:
            self.out_of_memory = False
            tokens = budget if self.limit is None else min(budget, self.limit)
            members = int(self.ranks.largest(torch.tensor(attempt(tokens), device=self.ranks.device)))
            if members == 0:
                return
            if members == 1:
                raise UsageError(
                    "out of memory with one sequence at a time, which a smaller tokens_per_micro_batch cannot mend: "
                    "set activation_checkpointing: true, lower max_tokens or context, or use more memory or more ranks"
                )
            self.limit = tokens // 2
            self.notes.append(
                f"out of memory with micro-batches of {tokens} tokens: the step is repeated with {self.limit} "
                "(set tokens_per_micro_batch to that to save the try)"
            )
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End the block, and remember it, where memory runs out within."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory = True

    def state_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "scale": self.scale.value, "good_steps": self.scale.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.limit, self.scale.value, self.scale.good_steps = state["limit"], state["scale"], state["good_steps"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: a device's, or the CPU allocator's."""
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
        or "status_alloc_failed" in text  # cuBLAS and its kin
    )
