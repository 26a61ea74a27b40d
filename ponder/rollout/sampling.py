"""From logits to one token a row, by inverse transform: one uniform number decides one token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder.rollout.base import Sampling

_BLOCK = 256
"""The cumulative sum runs over blocks of so many tokens first, then within one block."""

_BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1: a sum times it is strictly below the sum."""

_CANDIDATES = 256
"""Top-p looks among so many of the most probable tokens first, and sorts the vocabulary only if they fall short."""


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits (n, V), uniforms (n,) in [0, 1) -> token ids (n,) and their log-probabilities (n,).

    The log-probability is under softmax(logits / temperature) before top-k and top-p; greedy (temperature 0) reports it
    at temperature 1.
    """
    drawn = _draw(logits, uniforms, sampling)
    return drawn.ids, drawn.logprobs


def draw_with_entropy(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw` gives, to the bit, and the entropy (n,) in nats of the distribution whose log-probability that is.

    H = log sum w - sum w z / sum w, w = exp(z), over the vocabulary: one more pass over what the draw has formed.
    """
    drawn = _draw(logits, uniforms, sampling)
    return drawn.ids, drawn.logprobs, drawn.entropies()


class _Drawn(NamedTuple):
    """A draw, and the distribution it came from: softmax of `scaled`, which is `weights` / `total`."""

    ids: Tensor
    logprobs: Tensor
    scaled: Tensor
    offset: Tensor
    """(n, 1): `weights` are exp(scaled - offset)."""
    weights: Tensor | None
    """(n, V); None where the draw had no need of them."""
    total: Tensor
    """(n, 1): the sum of the weights."""

    def entropies(self) -> Tensor:
        """(n,) in nats."""
        if self.weights is None:
            # large logits round: what is near the peak must be told from it, not from zero
            peak = self.scaled.amax(-1, keepdim=True)
            scaled, offset = self.scaled - peak, torch.zeros_like(peak)
            weights = scaled.exp()
            total = weights.sum(-1)
        else:
            scaled, offset, weights, total = self.scaled, self.offset, self.weights, self.total.squeeze(1)
        dot = torch.linalg.vecdot(weights, scaled)
        if not bool(dot.isfinite().all()):  # an impossible token's logit is -inf: 0 * -inf, where its part is 0
            dot = torch.linalg.vecdot(weights, scaled.clamp(min=torch.finfo(torch.float32).min))
        return (offset.squeeze(1) + total.log() - dot / total).clamp(min=0)


def _draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> _Drawn:
    logits = logits.float()
    greedy = sampling.temperature == 0
    scaled = logits if greedy or sampling.temperature == 1 else logits / sampling.temperature
    if greedy or sampling.top_k or sampling.top_p < 1:
        ids = logits.argmax(-1) if greedy else _draw_filtered(scaled, uniforms, sampling)
        log_total = scaled.logsumexp(-1, keepdim=True)
        logprobs = (scaled.gather(1, ids[:, None]) - log_total).squeeze(1)
        return _Drawn(ids, logprobs, scaled, log_total, None, torch.ones_like(log_total))
    peak = scaled.amax(-1, keepdim=True)
    weights = (scaled - peak).exp_()
    ids, summed = _inverse_cdf(weights, uniforms)
    total = summed[:, None]
    logprobs = (scaled.gather(1, ids[:, None]) - peak - total.log()).squeeze(1)
    return _Drawn(ids, logprobs, scaled, peak, weights, total)


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """weights (n, V) >= 0 -> index (n,) where the running sum passes uniform * total, and total (n,).

    Two levels, so that no running sum over the whole vocabulary is formed.
    """
    rows, size = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = padded.view(rows, -1, _BLOCK)
    ends = blocks.sum(-1).cumsum(-1)
    total = ends[:, -1]
    aim = (uniforms * total)[:, None]
    block = _first_above(ends, aim)
    start = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0)
    inner = blocks[torch.arange(rows, device=weights.device), block.squeeze(1)]
    running = inner.cumsum(-1)
    # a block's sum and its running sum round differently: aim no further than the last token of positive weight
    offset = _first_above(running, torch.minimum(aim - start, running[:, -1:] * _BELOW_ONE))
    ids = (block * _BLOCK + offset).squeeze(1)
    # a GPU's running sum need not be monotone: step from a token without weight to the most probable one there
    astray = padded.gather(1, ids[:, None]).squeeze(1) <= 0
    return torch.where(astray, block.squeeze(1) * _BLOCK + inner.argmax(-1), ids), total


def _first_above(running: Tensor, aim: Tensor) -> Tensor:
    """(n, m) non-decreasing, (n, 1) -> (n, 1): the first index whose value exceeds the aim, at most m - 1."""
    return (running <= aim).sum(-1, keepdim=True).clamp(max=running.shape[1] - 1)


def _draw_filtered(scaled: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """As vLLM and transformers: top-k first, then the smallest set whose mass reaches top-p, then draw."""
    size = scaled.shape[1]
    count = min(sampling.top_k or max(_CANDIDATES, 1), size)
    logits, ids = scaled.topk(count, dim=-1)
    base = logits if sampling.top_k else scaled
    probabilities = (logits - base.logsumexp(-1, keepdim=True)).exp()
    if not sampling.top_k and count < size and bool((probabilities.sum(-1) < sampling.top_p).any()):
        logits, ids = scaled.sort(dim=-1, descending=True)
        probabilities = logits.softmax(-1)
    # a token stays when the mass before it has not reached top-p: the first always does
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.where(before < sampling.top_p, probabilities, 0)
    position, _ = _inverse_cdf(kept, uniforms)
    return ids.gather(1, position[:, None]).squeeze(1)
