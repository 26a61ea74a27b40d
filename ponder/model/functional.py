"""Two functions whose built-in backward passes waste memory traffic on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of gate and up side by side: (N, 2 f) -> (N, f) [Shazeer, 2002.05202].

    The backward pass writes both gradients into one buffer; autograd would make two and copy them together.
    """
    out: Tensor = _SwiGLU.apply(gate_up)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (grad,) = grads
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        # d silu(g) / d g = s + g s (1 - s) = s (1 + g - silu(g)), with s = sigmoid(g)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        torch.mul(grad, silu, out=grad_up)
        silu.sub_(gate).sub_(1).neg_().mul_(sigmoid)
        torch.mul(grad, up, out=grad_gate)
        grad_gate.mul_(silu)
        return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension [Zhang and Sennrich, 1910.07467]."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = 1 / rms(x);   dx = r (g w - x r^2 mean(g w x)),   dw = sum over rows of g x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        (grad,) = grads
        size = x.shape[-1]
        product = grad * x
        grad_weight = inverse.reshape(1, -1) @ product.reshape(-1, size)
        along = (product.reshape(-1, size) @ weight).view_as(inverse)
        along.mul_(inverse.pow(3)).div_(size)
        grad_x = (grad * weight).mul_(inverse).addcmul_(x, along, value=-1)
        return grad_x, grad_weight.view_as(weight), None
