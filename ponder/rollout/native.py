"""The native engine: continuous batching over the decoder, as a session and, in one call, as an engine.

A request's prompt is computed once for all its samples. Sequences that end leave the batch at once and waiting ones
take their place, so every row of every matrix product is a live token. In process the weights are those of the
trainer, and so are the log-probabilities: no second forward pass, no gap.

Shapes: n live rows, P prompt, T cache capacity, Hq and Hkv heads, G = Hq / Hkv, D head size, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.errors import UsageError
from ponder.model.decoder import Decoder, PackedAttention, Packing
from ponder.rollout.base import (
    Completion,
    Finished,
    OnFinished,
    Request,
    Sampling,
    Session,
    check_room,
    uniform_stream,
)
from ponder.rollout.sampling import draw_with_entropy

_CACHE_BLOCK = 64
"""The cache grows by so many positions at a time."""

PREFILL_TOKENS = 4096
"""Prompts are computed together up to so many tokens."""


class KeyValueCache:
    """Keys and values of the live rows, (layers, rows, Hkv, T, D) each; row i belongs to live row i."""

    def __init__(self, decoder: Decoder) -> None:
        c = decoder.config
        dtype = decoder.compute_dtype or decoder.head_weight.dtype
        self.keys = decoder.head_weight.new_empty(c.num_layers, 0, c.num_kv_heads, 0, c.head_dim, dtype=dtype)
        self.values = torch.empty_like(self.keys)

    def reserve_rows(self, rows: int) -> None:
        """Make room for so many rows, keeping what is there."""
        extra = rows - self.keys.shape[1]
        if extra > 0:
            self.keys, self.values = (F.pad(x, (0, 0, 0, 0, 0, 0, 0, extra)) for x in (self.keys, self.values))

    def reserve(self, positions: int) -> None:
        """Make room for so many positions, keeping what is there."""
        held = self.keys.shape[3]
        if positions <= held:
            return
        # doubling keeps the copies linear in the final size
        capacity = max(-(-positions // _CACHE_BLOCK) * _CACHE_BLOCK, 2 * held)
        self.keys, self.values = (F.pad(x, (0, 0, 0, capacity - held)) for x in (self.keys, self.values))

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Fill a row with a computed prompt: keys and values (layers, Hkv, P, D)."""
        length = keys.shape[2]
        self.reserve(length)
        self.keys[:, row, :, :length] = keys
        self.values[:, row, :, :length] = values

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy one row over another."""
        self.keys[:, target, :, :positions] = self.keys[:, source, :, :positions]
        self.values[:, target, :, :positions] = self.values[:, source, :, :positions]


class CachedAttention:
    """One new token a live row, over the row's cache."""

    def __init__(self, cache: KeyValueCache, positions: Tensor) -> None:
        self.cache = cache
        self.positions = positions
        self.rows = torch.arange(positions.shape[0], device=positions.device)
        self.longest = int(positions.max()) + 1
        visible = torch.arange(self.longest, device=positions.device) <= positions[:, None]
        self.mask = torch.zeros(visible.shape, device=positions.device).masked_fill_(~visible, -torch.inf)[
            :, None, None
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, size = q.shape
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = k
        values[self.rows, :, self.positions] = v
        # the G queries that share a key head stand in for G query positions: no key is repeated
        grouped = q.view(n, keys.shape[1], -1, size)
        out = F.scaled_dot_product_attention(
            grouped, keys[:n, :, : self.longest], values[:n, :, : self.longest], attn_mask=self.mask
        )
        return out.reshape(n, heads * size)


class _RecordingAttention(PackedAttention):
    """Packed attention that keeps each layer's keys and values: how a prompt enters the cache."""

    def __init__(self, packing: Packing) -> None:
        super().__init__(packing)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys.append(k)
        self.values.append(v)
        return super().__call__(layer, q, k, v)


@dataclass(frozen=True)
class ComputedPrompt:
    """A computed prompt: keys and values (layers, Hkv, P, D), and the logits (V,) of the first new token."""

    keys: Tensor
    values: Tensor
    logits: Tensor


def prefill(decoder: Decoder, prompts: Sequence[tuple[int, ...]]) -> list[ComputedPrompt]:
    """Compute prompts, several together while they are short."""
    computed: list[ComputedPrompt] = []
    start = 0
    while start < len(prompts):
        end, tokens = start, 0
        while end < len(prompts) and (end == start or tokens + len(prompts[end]) <= PREFILL_TOKENS):
            tokens += len(prompts[end])
            end += 1
        computed += _prefill_together(decoder, prompts[start:end])
        start = end
    return computed


def _prefill_together(decoder: Decoder, prompts: Sequence[tuple[int, ...]]) -> list[ComputedPrompt]:
    device = decoder.head_weight.device
    lengths = [len(p) for p in prompts]
    attention = _RecordingAttention(Packing.of_lengths(lengths).to(device))
    ids = torch.tensor([t for p in prompts for t in p], device=device)
    ends = torch.tensor(lengths, device=device).cumsum(0)
    with decoder.arithmetic():
        hidden = decoder.hidden(ids, attention.packing.positions, attention)
        logits = F.linear(hidden[ends - 1], decoder.head_weight)
    keys = torch.stack(attention.keys).transpose(1, 2).split(lengths, dim=2)
    values = torch.stack(attention.values).transpose(1, 2).split(lengths, dim=2)
    return [ComputedPrompt(*parts) for parts in zip(keys, values, logits, strict=True)]


def decode_tokens(decoder: Decoder, cache: KeyValueCache, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
    """One forward pass over one token a live row, at these positions -> logits (n, V); the cache grows as needed."""
    device = decoder.head_weight.device
    tokens, places = torch.tensor(ids, device=device), torch.tensor(positions, device=device)
    cache.reserve(int(places.max()) + 1)
    with decoder.arithmetic():
        hidden = decoder.hidden(tokens, places, CachedAttention(cache, places))
        return F.linear(hidden, decoder.head_weight)


@dataclass
class _Row:
    """A live sequence: which rollout it is, and what it has said so far."""

    request: int
    sample: int
    length: int
    """Tokens that the cache holds of it."""
    uniforms: np.ndarray
    max_tokens: int
    sampling: Sampling
    completion: Completion
    version: int | None = None
    """Of the weights that its last token was drawn under."""


@dataclass(frozen=True)
class _Asked:
    """A request with samples that wait to begin, and how it is sampled."""

    request: Request
    sampling: Sampling
    seed: int


class NativeSession:
    """A `Session` over a decoder in this process.

    `decode` (ids -> text) is needed for stop texts only. `max_rows` bounds the live rows, and with them the cache.
    `length_limit(request, sample)`, where given, lowers the sampling's `max_tokens` for single rollouts: benchmarks use
    it to force the lengths of a real run. `version` names the weights that the decoder holds.
    """

    def __init__(
        self,
        decoder: Decoder,
        decode: Callable[[Sequence[int]], str] | None = None,
        max_rows: int = 256,
        length_limit: Callable[[int, int], int] | None = None,
        version: int = 0,
    ) -> None:
        self.decoder = decoder
        self.decode = decode
        self.max_rows = max_rows
        self.length_limit = length_limit
        self.version = version
        self._asked: dict[int, _Asked] = {}
        self._count = 0
        self._waiting: deque[tuple[int, int]] = deque()
        self._prompts: dict[int, ComputedPrompt] = {}
        self._rows: list[_Row] = []
        self._cache = KeyValueCache(decoder)

    def add(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> None:
        """See `Session`. Raises `UsageError` when a prompt is empty or leaves no room for `max_tokens`."""
        check_room(requests, sampling, self.decoder.config.max_positions)
        if sampling.stop and self.decode is None:
            raise UsageError("stop texts need an engine with a tokenizer")
        for request in requests:
            self._asked[self._count] = _Asked(request, sampling, seed)
            self._waiting.extend((self._count, sample) for sample in range(request.num_samples))
            self._count += 1

    @property
    def idle(self) -> bool:
        return not self._rows and not self._waiting

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One token more for each live row; waiting samples take the free rows first."""
        logits = [self._decode()] if self._rows else []
        joining = self._join()
        if joining:
            logits.append(torch.stack(joining))
        if not logits:
            return []
        ended = self._sample(logits[0] if len(logits) == 1 else torch.cat(logits))
        finished = [(self._rows[i].request, self._rows[i].sample, self._rows[i].completion) for i in ended]
        for index in sorted(ended, reverse=True):
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
                self._cache.move(len(self._rows), index, last.length)
        if self.idle:
            self._cache = KeyValueCache(self.decoder)  # an idle session holds no cache
        return finished

    def load_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """See `Session`. Prompts are computed anew for the samples that have not begun."""
        self.decoder.load_state_dict(weights)
        self.version = version
        self._prompts.clear()

    def close(self) -> None:
        """Nothing is held that goes not by itself."""

    def _join(self) -> list[Tensor]:
        """Fill free rows with waiting samples; returns the first-token logits (V,) of each."""
        count = min(self.max_rows - len(self._rows), len(self._waiting))
        joining = [self._waiting.popleft() for _ in range(count)]
        new = sorted({i for i, _ in joining} - self._prompts.keys())
        if new:
            prompts = prefill(self.decoder, [self._asked[i].request.prompt_ids for i in new])
            self._prompts.update(zip(new, prompts, strict=True))
        self._cache.reserve_rows(min(self.max_rows, len(self._rows) + count))
        logits = []
        for i, sample in joining:
            asked, prompt = self._asked[i], self._prompts[i]
            length = len(asked.request.prompt_ids)
            self._cache.reserve(length + 1)
            self._cache.put(len(self._rows), prompt.keys, prompt.values)
            limit = asked.sampling.max_tokens
            if self.length_limit is not None:
                limit = min(limit, self.length_limit(i, sample))
            uniforms = uniform_stream(asked.seed, asked.request.key, sample, limit)
            completion = Completion([], [], "length")
            self._rows.append(_Row(i, sample, length, uniforms, limit, asked.sampling, completion))
            logits.append(prompt.logits)
            if sample == asked.request.num_samples - 1:
                del self._prompts[i], self._asked[i]
        return logits

    def _sample(self, logits: Tensor) -> list[int]:
        """Draw one token a row from logits (n, V) and write it down; returns the indices of the rows that ended."""
        rows = self._rows
        uniforms = np.fromiter((row.uniforms[len(row.completion.ids)] for row in rows), np.float32, len(rows))
        ended = []
        for members, sampling in self._by_sampling():
            whole = len(members) == len(rows)
            chosen = torch.from_numpy(uniforms if whole else uniforms[members]).to(logits.device)
            drawn = draw_with_entropy(logits if whole else logits[members], chosen, sampling)
            for index, token, logprob, entropy in zip(members, *(x.tolist() for x in drawn), strict=True):
                row = rows[index]
                completion = row.completion
                if row.version != self.version:
                    row.version = self.version
                    completion.versions.append((len(completion.ids), self.version))
                completion.ids.append(token)
                completion.logprobs.append(logprob)
                completion.entropies.append(entropy)
                if token in sampling.stop_ids or (sampling.stop and self._stops(completion.ids, sampling.stop)):
                    completion.finish_reason = "stop"
                    ended.append(index)
                elif len(completion.ids) >= row.max_tokens:
                    ended.append(index)
        return ended

    def _by_sampling(self) -> list[tuple[Sequence[int], Sampling]]:
        """The rows that are sampled alike; nearly always all of them."""
        first = self._rows[0].sampling
        if all(row.sampling is first for row in self._rows):
            return [(range(len(self._rows)), first)]
        alike: dict[Sampling, list[int]] = {}
        for index, row in enumerate(self._rows):
            alike.setdefault(row.sampling, []).append(index)
        return [(members, sampling) for sampling, members in alike.items()]

    def _stops(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        assert self.decode is not None
        # a byte-level token holds at least one byte; a few more for one that straddles the stop's end
        window = max(len(text.encode()) for text in stop) + 4
        return any(text in self.decode(ids[-window:]) for text in stop)

    def _decode(self) -> Tensor:
        """One forward pass over the last token of every live row -> logits (n, V)."""
        rows = self._rows
        logits = decode_tokens(
            self.decoder, self._cache, [row.completion.ids[-1] for row in rows], [row.length for row in rows]
        )
        for row in rows:
            row.length += 1
        return logits


class NativeEngine:
    """An `Engine` over a decoder in this process: a session that runs to its end. Settings as in `NativeSession`."""

    name = "native"

    def __init__(
        self,
        decoder: Decoder,
        decode: Callable[[Sequence[int]], str] | None = None,
        max_rows: int = 256,
        length_limit: Callable[[int, int], int] | None = None,
    ) -> None:
        self.decoder = decoder
        self.decode = decode
        self.max_rows = max_rows
        self.length_limit = length_limit
        self.version = 0
        """Names the weights that the decoder holds; whoever trains it counts."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """See `Engine`. Raises `UsageError` when a prompt is empty or leaves no room for `max_tokens`."""
        session = NativeSession(self.decoder, self.decode, self.max_rows, self.length_limit, self.version)
        session.add(requests, sampling, seed)
        return run_to_end(session, requests, on_finished)


def run_to_end(
    session: Session, requests: Sequence[Request], on_finished: OnFinished | None = None
) -> list[list[Completion]]:
    """The completions of the requests that a fresh session was given, in order."""
    results: list[dict[int, Completion]] = [{} for _ in requests]
    while not session.idle:
        finished = session.step()
        for request, sample, completion in finished:
            results[request][sample] = completion
        if finished and on_finished is not None:
            on_finished(finished)
    return [[group[sample] for sample in sorted(group)] for group in results]
