"""Continuous batching one step at a time, for whoever must speak between two tokens: the server and the chat.

`NativeEngine.generate` owns its loop and ends when the last rollout does. Here the caller owns the loop: sequences
with settings of their own join between any two steps, leave at once, and may be told what to say next. The computation
is the engine's (`prefill`, `decode_tokens`, `draw`), and so are the random streams: the same prompt, seed and
settings give the same text.

    stepper.join([sequence, ...])
    for sequence, token in stepper.step():
        ...                                   # stepper.leave(sequence) when it is done

Shapes: n live rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ponder.model.decoder import Decoder
from ponder.rollout.base import Sampling
from ponder.rollout.native import KeyValueCache, decode_tokens, prefill
from ponder.rollout.sampling import draw

_ROWS_BLOCK = 4
"""The cache grows by so many rows at a time."""


@dataclass(eq=False)
class LiveSequence:
    """A sequence in the making. Its owner decides when it ends, at the latest when `uniforms` are used up."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    """Temperature, top-p and top-k; the stepper heeds neither `max_tokens` nor stops."""
    uniforms: np.ndarray
    """(max_tokens,): token t is drawn with number t; see `ponder.rollout.base.uniform_stream`."""
    num_top: int | None = None
    """Alternatives to report with each token; None reports no log-probability either."""
    ids: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    """Token ids to come next, whatever would be drawn."""

    @property
    def position(self) -> int:
        """Where the last token stands, which is also how many tokens the cache holds of this sequence."""
        return len(self.prompt_ids) + len(self.ids) - 1

    @property
    def last_id(self) -> int:
        return self.ids[-1] if self.ids else self.prompt_ids[-1]

    @property
    def max_length(self) -> int:
        """Tokens that the sequence may come to have, prompt included."""
        return len(self.prompt_ids) + len(self.uniforms)


@dataclass(frozen=True)
class Token:
    """One token of a sequence; log-probabilities are the model's own, at temperature 1 and before any filter."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most probable ids with their log-probabilities, best first."""


class Stepper:
    """The live sequences of one model and their cache. Belongs to one thread."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.rows: list[LiveSequence] = []
        self._cache = KeyValueCache(decoder)

    @torch.inference_mode()
    def join(self, sequences: Sequence[LiveSequence]) -> None:
        """Let new sequences take part from the next step on. Equal prompts are computed once."""
        # a prompt's last token is left to the first step, where it is a row like any other
        prompts = list({s.prompt_ids[:-1]: None for s in sequences if len(s.prompt_ids) > 1})
        computed = dict(zip(prompts, prefill(self.decoder, prompts), strict=True))
        self._cache.reserve_rows(-(-(len(self.rows) + len(sequences)) // _ROWS_BLOCK) * _ROWS_BLOCK)
        for sequence in sequences:
            prompt = computed.get(sequence.prompt_ids[:-1])
            if prompt is not None:
                self._cache.put(len(self.rows), prompt.keys, prompt.values)
            self.rows.append(sequence)

    @torch.inference_mode()
    def step(self) -> list[tuple[LiveSequence, Token]]:
        """One token more for each live sequence, in no particular order."""
        if not self.rows:
            return []
        last, positions = [row.last_id for row in self.rows], [row.position for row in self.rows]
        logits = decode_tokens(self.decoder, self._cache, last, positions)
        ids = self._choose(logits)
        tokens = [Token(i) for i in ids]
        for index, row in enumerate(self.rows):
            row.ids.append(ids[index])
            if row.num_top is not None:
                tokens[index] = _with_logprobs(ids[index], logits[index], row.num_top)
        return list(zip(self.rows, tokens, strict=True))

    @torch.inference_mode()
    def leave(self, sequence: LiveSequence) -> None:
        """Take a sequence out of the batch; the last row fills its place."""
        index = self.rows.index(sequence)
        last = self.rows.pop()
        if last is not sequence:
            self.rows[index] = last
            self._cache.move(len(self.rows), index, last.position)
        if not self.rows:
            self._cache = KeyValueCache(self.decoder)  # an idle model holds no cache

    def _choose(self, logits: Tensor) -> list[int]:
        """logits (n, V) -> the next token id of each row: forced, or drawn under the row's own settings."""
        groups: dict[Sampling, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row.sampling, []).append(index)
        chosen = [0] * len(self.rows)
        for sampling, members in groups.items():
            uniforms = [float(self.rows[i].uniforms[len(self.rows[i].ids)]) for i in members]
            drawn, _ = draw(logits[members], torch.tensor(uniforms, device=logits.device), sampling)
            for index, token in zip(members, drawn.tolist(), strict=True):
                forced = self.rows[index].forced
                chosen[index] = forced.popleft() if forced else token
        return chosen


def bytes_per_position(decoder: Decoder) -> int:
    """Bytes of keys and values that one token of one sequence takes in the cache."""
    c = decoder.config
    return 2 * c.num_layers * c.num_kv_heads * c.head_dim * decoder.head_weight.element_size()


def _with_logprobs(token: int, logits: Tensor, num_top: int) -> Token:
    """logits (V,) -> the token with its log-probability and the `num_top` most probable alternatives."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(num_top)
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), top)
