"""A decoder on several ranks: in shards (FSDP2, Zhao et al., 2304.11277), or whole on each (DDP).

Every rank holds the same rows of every tensor under both, as far as checkpoints go (`Shard`): row i of n belongs to
rank i // ceil(n / size), which is how FSDP2 cuts.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ponder.model.decoder import Attention, Decoder, rotation_table
from ponder.training.execution import Execution, Ranks

Sharding = Literal["fsdp2", "ddp"]


def open_store(host: str, port: int | None = None) -> TCPStore:
    """Where ranks meet: on rank 0 a new one at any free port of `host`, else the one that listens at `port`."""
    if port is not None:
        return TCPStore(host, port, is_master=False)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen()
    # the store takes the socket over: a port that was merely known to be free could be taken by then
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def join(rank: int, size: int, store: Store, timeout_s: float, device: torch.device, loopback: bool = False) -> None:
    """Meet the other ranks; every exchange has `timeout_s` seconds. Gloo carries what lies on the CPU, NCCL what lies
    on a GPU; with `loopback`, all ranks are on this machine and nothing is open to others."""
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        backend="gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an exception says that another rank is gone, or too late, rather than that something is wrong here."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def place(decoder: Decoder, sharding: Sharding, execution: Execution) -> Decoder:
    """Put a decoder without content (on the device `meta`) onto the ranks, in place; `spread` fills it.

    Under FSDP2 each layer's weights are whole only while it computes, and in the decoder's compute type; the
    embedding's and the head's from the forward pass to the end of the backward pass, since the log-probabilities
    need the head, too.
    """
    ranks = execution.ranks
    if sharding == "fsdp2":
        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        # what goes from layer to layer stays fp32, as under autocast, so that both kinds compute the same
        half = MixedPrecisionPolicy(
            param_dtype=decoder.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for layer in decoder.layers:
            guard_layer(layer, execution)
            _sums(fully_shard(layer, mesh=mesh, mp_policy=half))
        _sums(fully_shard(decoder, mesh=mesh, reshard_after_forward=False))
        register_fsdp_forward_method(decoder, "hidden")
    decoder.to_empty(device=ranks.device)
    decoder.rotations = rotation_table(decoder.config).to(ranks.device)
    return decoder


def _sums(module: FSDPModule) -> None:
    """Add gradients up over the ranks: each computes its part of one sum, no mean of its own."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """What this rank holds of a tensor: `local` is its rows from `first` on, or all of them where it is not sharded."""

    local: Tensor
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: int = 0

    @classmethod
    def of(cls, tensor: Tensor, ranks: Ranks) -> Shard:
        """The shard of a DTensor or of a tensor that is whole on every rank."""
        if isinstance(tensor, DTensor):
            first, _ = row_range(tensor.shape[0], ranks.rank, ranks.size)
            return cls(tensor.to_local().detach(), tuple(tensor.shape), first)
        return cls(tensor.detach(), tuple(tensor.shape))

    def own(self, ranks: Ranks) -> tuple[Tensor, int]:
        """The rows that this rank writes into a checkpoint, and the first one's number."""
        first, last = row_range(self.shape[0], ranks.rank, ranks.size)
        return self.local[first - self.first : last - self.first], first


def row_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """First row, and the one behind the last, that a rank holds of a tensor with so many rows."""
    each = math.ceil(rows / size)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def named_shards(decoder: Decoder, ranks: Ranks, learnt_only: bool = False) -> dict[str, Shard]:
    """This rank's part of every parameter, by name."""
    reshard(decoder)
    return {
        name: Shard.of(parameter, ranks)
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad or not learnt_only
    }


def reshard(decoder: Decoder) -> None:
    """Let go of whole weights that a forward pass without a backward pass has left: they would not follow changes."""
    if isinstance(decoder, FSDPModule):
        decoder.reshard()


@torch.no_grad()
def spread(decoder: Decoder, weights: Mapping[str, Tensor] | None, ranks: Ranks) -> None:
    """Fill every parameter from rank 0's `weights` (None on the others), one whole tensor at a time."""
    for name, shard in named_shards(decoder, ranks).items():
        whole = torch.empty(shard.shape, dtype=shard.local.dtype, device=ranks.device)
        if weights is not None:
            whole.copy_(weights[name])
        if ranks.size > 1:
            dist.broadcast(whole, src=0)
        shard.local.copy_(whole[shard.first : shard.first + len(shard.local)])


@torch.no_grad()
def gather(decoder: Decoder, ranks: Ranks) -> dict[str, Tensor]:
    """Every parameter, whole, as a copy on rank 0's CPU; nothing on the others. One exists on the device at a time."""
    reshard(decoder)
    gathered: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if ranks.rank == 0:
            gathered[name] = whole.detach().to("cpu", copy=True)
    return gathered


# --- a layer that always keeps step -----------------------------------------------------------------------------------


def guard_layer(layer: nn.Module, execution: Execution) -> None:
    """Let a layer go through the motions when memory has run out: the others wait for its part of the exchanges.

    Its forward and backward passes then compute nothing, pass on what they are given and leave gradients of zero;
    the step is repeated anyway (`Execution.within_memory`).
    """
    compute = layer.forward
    anchor = torch.zeros((), requires_grad=True)  # so that a backward pass comes by even if `x` asks for no gradient

    def forward(x: Tensor, rotation: Tensor, attention: Attention) -> Tensor:
        run = partial(compute, rotation=rotation, attention=attention)
        # no backward pass comes by on any rank where this layer and all before it are frozen
        if torch.is_grad_enabled() and (x.requires_grad or any(True for _ in _learning(layer))):
            out: Tensor = _Guarded.apply(x, anchor, run, layer, execution)
            return out
        if not execution.out_of_memory:
            with execution.watching():
                return run(x)
        return x

    layer.forward = forward


class _Guarded(torch.autograd.Function):
    """A function with a graph of its own, whose backward pass can fail without leaving the one around it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, run: Callable[[Tensor], Tensor], layer: nn.Module, execution: Execution
    ) -> Tensor:
        ctx.layer, ctx.execution, ctx.graph = layer, execution, None
        entry = x.detach().requires_grad_()
        if not execution.out_of_memory:
            with execution.watching(), torch.enable_grad():
                ctx.graph = (entry, run(entry))
        return x.view_as(x) if ctx.graph is None else ctx.graph[1].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        graph, ctx.graph = ctx.graph, None
        if graph is not None and not ctx.execution.out_of_memory:
            entry, out = graph
            with ctx.execution.watching():
                torch.autograd.backward(out, grad)
                return entry.grad, None, None, None, None
        for parameter in _learning(ctx.layer):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return grad, None, None, None, None


def _learning(layer: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in layer.parameters() if parameter.requires_grad)
