"""What an engine is: prompts in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ponder.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch that filter off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end a completion (kept in it); needs the engine's tokenizer."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a completion (kept in it), normally the end-of-text token."""


@dataclass(frozen=True)
class Request:
    """`num_samples` completions of one prompt. `key` names their random streams: see `stream_seed`."""

    prompt_ids: tuple[int, ...]
    key: str
    num_samples: int = 1


@dataclass
class Completion:
    """One sampled completion.

    `logprobs[t]` is the log-probability of `ids[t]` under softmax(logits / temperature) over the whole
    vocabulary, before top-k and top-p: the quantity the policy loss differentiates.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    versions: list[tuple[int, int]] = field(default_factory=list)
    """(first token, policy version) of each stretch that was sampled under one version of the weights. More than one
    where new weights came while the rollout was under way; empty from engines whose weights never change."""

    entropies: list[float] = field(default_factory=list)
    """Of the distribution that each token was drawn from, in nats, before top-k and top-p; empty where unknown."""

    @property
    def oldest_version(self) -> int:
        """The version of the first token's weights; 0 where they never change."""
        return self.versions[0][1] if self.versions else 0


Progress = Callable[[int], None]
"""Called with the number of completions that have just ended."""

Finished = tuple[int, int, Completion]
"""A completion that has just ended: number of its request, number of its sample, the completion."""

OnFinished = Callable[[Sequence[Finished]], None]
"""Called with the completions that have just ended, while the others go on."""


class Engine(Protocol):
    """Samples completions from the current weights. `native` runs in process."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """For each request, in order, its `num_samples` completions, in order of sample number."""
        ...


Ticket = int
"""Names requests that an engine is at work on."""


class PoolEngine(Engine, Protocol):
    """An engine in other processes, which works while its owner does something else."""

    def begin(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> Ticket:
        """Ask without waiting. `on_finished` is called from within a later call of this engine, in the caller's thread,
        once for each completion, whoever is lost meanwhile."""
        ...

    def finish(self, ticket: Ticket) -> list[list[Completion]]:
        """Wait for what `begin` asked for; as `generate` returns it."""
        ...

    def finish_any(self, tickets: Sequence[Ticket], count: int) -> set[Ticket]:
        """Wait until `count` of the tickets are done, and say which were the first; `finish` then returns at once."""
        ...

    def forget(self) -> None:
        """Drop everything that is under way."""
        ...


class Session(Protocol):
    """Rollouts in the making, for whoever must act between two tokens: add requests, or bring new weights.

    Requests are numbered from 0 in the order in which they are added, over the session's whole life. A session belongs
    to one thread.
    """

    def add(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> None:
        """Take more requests. Raises `UsageError` for what the model has no room for."""
        ...

    def step(self) -> list[Finished]:
        """Go on for a moment; returns the completions that have ended meanwhile. Nothing to do returns at once."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        ...

    def load_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Sample every further token under these weights (the decoder's own names). What is under way goes on with the
        keys and values that it has [PipelineRL]."""
        ...

    def close(self) -> None:
        """Let go of everything, processes included."""
        ...


def check_room(requests: Sequence[Request], sampling: Sampling, positions: int) -> None:
    """Raises `UsageError` when a prompt is empty or leaves no room for `max_tokens`."""
    for request in requests:
        if not request.prompt_ids:
            raise UsageError(f"request {request.key!r} has an empty prompt")
        if len(request.prompt_ids) + sampling.max_tokens > positions:
            raise UsageError(
                f"a prompt of {len(request.prompt_ids)} tokens and sampling.max_tokens={sampling.max_tokens} "
                f"exceed the model's {positions} positions: lower sampling.max_tokens"
            )


def stream_seed(seed: int, key: str, sample: int) -> int:
    """128-bit seed of one rollout's random stream: a function of (seed, key, sample number) and nothing else.

    The reinforce loop puts the step and the problem's id in `key`, so that a rollout does not depend on what else
    is in the batch or on the order in which sequences end.
    """
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{sample}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def uniform_stream(seed: int, key: str, sample: int, num_tokens: int) -> np.ndarray:
    """(num_tokens,) float32 uniforms in [0, 1): token t of the rollout is drawn with number t."""
    generator = np.random.Generator(np.random.Philox(key=stream_seed(seed, key, sample)))
    return generator.random(num_tokens, dtype=np.float32)
