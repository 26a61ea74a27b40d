"""Log-probabilities and entropies of given tokens, without ever holding all logits.

The logits of a micro-batch are its largest tensor by far (SmolLM2-135M: 49,152 floats a token). Here they exist for one
chunk of rows at a time, in the forward pass and again, recomputed, in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_LOGITS = 1 << 22
"""Logits held at a time on a CPU: 16 MiB in float32, about what a last-level cache holds."""
_ACCELERATOR_CHUNK_LOGITS = 1 << 26
"""The same on any other device: 256 MiB in float32, so that a product has hundreds of rows (of Qwen2.5's 152,064 tokens
441) and few kernels are started. A budget of memory; which size is fastest was not measured on a GPU."""


def token_logprobs(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """hidden (M, d), head (V, d), targets (M,) -> log-probabilities (M,) and entropies (M,), both differentiable.

    Under softmax(hidden head^T / temperature), in nats, in float32 or better. Entropies cost another pass over the
    logits; without `with_entropy` they are zeros.
    """
    logprobs, entropies = _TokenLogprobs.apply(hidden, head, targets, temperature, with_entropy)
    return logprobs, entropies


class _TokenLogprobs(torch.autograd.Function):
    """log p_y and H = -sum_j p_j log p_j.

    d log p_y / d z_j = [j = y] - p_j;   d H / d z_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(targets.shape, dtype=_precision(hidden), device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        for rows in row_chunks(targets.shape[0], head.shape[0], hidden.device):
            log_p = _log_softmax(hidden[rows], head, temperature)
            logprobs[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
            if with_entropy:
                entropies[rows] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(hidden, head, targets, entropies)
        ctx.temperature = temperature
        ctx.with_entropy = with_entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropies = grads
        hidden, head, targets, entropies = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_head = None
        if ctx.needs_input_grad[1]:  # adapters leave the head as it is
            # in half precision a sum would lose its small parts
            grad_head = torch.zeros_like(head, dtype=_precision(head))
        for rows in row_chunks(targets.shape[0], head.shape[0], hidden.device):
            log_p = _log_softmax(hidden[rows], head, ctx.temperature)
            slope = grad_logprobs[rows, None]
            if ctx.with_entropy:
                slope = (log_p + entropies[rows, None]).mul_(grad_entropies[rows, None]).add_(slope)
            grad_logits = log_p.exp_().mul_(slope).neg_()
            grad_logits.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ head
            if grad_head is None:
                continue
            if grad_head.dtype == head.dtype:
                grad_head.addmm_(grad_logits.t(), hidden[rows])
            else:
                grad_head += grad_logits.t() @ hidden[rows]
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def _precision(hidden: Tensor) -> torch.dtype:
    """Half-precision models still get float32 log-probabilities."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _log_softmax(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = F.linear(hidden, head).to(_precision(hidden))
    if temperature != 1:
        logits /= temperature
    return logits.log_softmax(-1)


def row_chunks(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Slices of the rows that hold about as many logits as may exist at a time on a device."""
    logits = _CHUNK_LOGITS if device.type == "cpu" else _ACCELERATOR_CHUNK_LOGITS
    size = max(1, logits // vocabulary)
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]
