"""Continuous batching one step at a time, for whoever must speak between two tokens: the server and the chat.

`NativeEngine.generate` owns its loop and ends when the last rollout does. Here the caller owns the loop: sequences
with settings of their own join between any two steps, leave at once, and may be told what to say next. A long prompt is
computed in pieces, one a step, so that those who are speaking go on meanwhile. The computation is the engine's
(`prefill`, `decode_tokens`, `draw`), and so are the random streams: the same prompt, seed and settings give the same
text.

    stepper.join([sequence, ...])
    for sequence, token in stepper.step():
        ...                                   # stepper.leave(sequence) when it is done

Shapes: n live rows, V vocabulary; of a prompt's piece: T tokens, S tokens up to its end, Hq and Hkv heads, D head size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.model.decoder import Decoder
from ponder.rollout.base import Sampling
from ponder.rollout.native import KeyValueCache, decode_tokens, prefill
from ponder.rollout.sampling import draw

_ROWS_BLOCK = 4
"""The cache grows by so many rows at a time."""

PIECE_TOKENS = 256
"""Tokens of prompts that are computed in one step: those who listen wait no longer for their next token."""


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
    def context_ids(self) -> tuple[int, ...]:
        """What must be computed before the first step, where the prompt's last token is a row like any other."""
        return self.prompt_ids[:-1]

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
        """Those who speak: their prompts are computed."""
        self._joining: list[LiveSequence] = []
        self._pieces: _PromptInPieces | None = None
        """The first long prompt of those who join."""
        self._cache = KeyValueCache(decoder)

    def join(self, sequences: Sequence[LiveSequence]) -> None:
        """Let new sequences take part as soon as their prompts are computed. Equal prompts are computed once."""
        self._joining.extend(sequences)

    @torch.inference_mode()
    def step(self) -> list[tuple[LiveSequence, Token]]:
        """One token more for each sequence whose prompt is computed, in no particular order."""
        self._admit()
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
        if sequence in self._joining:
            self._joining.remove(sequence)
            return
        index = self.rows.index(sequence)
        last = self.rows.pop()
        if last is not sequence:
            self.rows[index] = last
            self._cache.move(len(self.rows), index, last.position)
        if not self.rows:
            self._cache = KeyValueCache(self.decoder)  # an idle model holds no cache

    def _admit(self) -> None:
        """Compute what a step may of the prompts of those who join, and let in those whose prompts are whole.

        Short prompts do not wait for long ones: each step computes short ones and a piece of the first long one.
        """
        short = self._short_prompts()
        computed = {ids: (p.keys, p.values) for ids, p in zip(short, prefill(self.decoder, short), strict=True)}
        long = next((s.context_ids for s in self._joining if len(s.context_ids) > PIECE_TOKENS), None)
        if long is None:
            self._pieces = None
        else:
            if self._pieces is None or self._pieces.ids != long:
                self._pieces = _PromptInPieces(self.decoder, long)
            self._pieces.advance()
            if self._pieces.is_whole:
                computed[long] = self._pieces.keys_and_values
        self._enter(computed)

    def _short_prompts(self) -> list[tuple[int, ...]]:
        """The first short prompts, each once, together no longer than a piece."""
        prompts: dict[tuple[int, ...], None] = {}
        for ids in (s.context_ids for s in self._joining if 0 < len(s.context_ids) <= PIECE_TOKENS):
            if ids not in prompts and sum(map(len, prompts)) + len(ids) > PIECE_TOKENS:
                break
            prompts[ids] = None
        return list(prompts)

    def _enter(self, computed: Mapping[tuple[int, ...], tuple[Tensor, Tensor]]) -> None:
        """Give a row to everyone whose prompt is computed; a prompt of one token needs no computing."""
        entering = [s for s in self._joining if s.context_ids in computed or not s.context_ids]
        self._joining = [s for s in self._joining if s not in entering]
        rows = len(self.rows) + len(entering)
        self._cache.reserve_rows(-(-rows // _ROWS_BLOCK) * _ROWS_BLOCK)
        for sequence in entering:
            if sequence.context_ids:
                self._cache.put(len(self.rows), *computed[sequence.context_ids])
            self.rows.append(sequence)

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


class _PromptInPieces:
    """A prompt that is computed piece by piece."""

    def __init__(self, decoder: Decoder, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self._decoder = decoder
        self._done = 0
        self._cache = KeyValueCache(decoder)
        self._cache.reserve_rows(1)
        self._cache.reserve(len(ids))

    @property
    def is_whole(self) -> bool:
        return self._done == len(self.ids)

    @property
    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """(layers, Hkv, S, D) each, as far as they are computed."""
        return self._cache.keys[:, 0, :, : self._done], self._cache.values[:, 0, :, : self._done]

    def advance(self) -> None:
        """Compute the next `PIECE_TOKENS` tokens."""
        device = self._decoder.head_weight.device
        piece = torch.tensor(self.ids[self._done : self._done + PIECE_TOKENS], device=device)
        positions = torch.arange(self._done, self._done + len(piece), device=device)
        self._decoder.hidden(piece, positions, _PieceAttention(self._cache, positions))
        self._done += len(piece)


class _PieceAttention:
    """A piece of one sequence, over itself and all that came before it."""

    def __init__(self, cache: KeyValueCache, positions: Tensor) -> None:
        self._cache = cache
        self._positions = positions
        self._end = int(positions[-1]) + 1
        self._visible = torch.arange(self._end, device=positions.device) <= positions[:, None]  # (T, S)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer, 0], self._cache.values[layer, 0]
        keys[:, self._positions], values[:, self._positions] = k.transpose(0, 1), v.transpose(0, 1)
        queries = q.transpose(0, 1)  # (Hq, T, D)
        past = (keys[None, :, : self._end], values[None, :, : self._end])
        out = F.scaled_dot_product_attention(queries[None], *past, attn_mask=self._visible, enable_gqa=True)
        return out[0].transpose(0, 1).reshape(len(q), -1)


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
