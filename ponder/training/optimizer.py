"""Optimizers and learning-rate schedules, from the recipe's `optimizer` block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ponder.recipe import OptimizerSettings
from ponder.training.execution import Execution


class Optimizer:
    """One or two torch optimizers (Muon needs AdamW beside it) behind one step, one schedule and one state."""

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, total_steps: int, execution: Execution | None = None
    ) -> None:
        """Moves the parameters of `model` that ask for a gradient; without an `execution`, in one process and fp32."""
        self.execution = Execution() if execution is None else execution
        self.settings = settings
        self.total_steps = total_steps
        self.step_count = 0
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if settings.name == "muon":
            matrices = [p for n, p in named if p.ndim == 2 and ".layers." in f".{n}"]
            self._parts.append((self._muon(matrices), settings.muon_lr))
            taken = {id(p) for p in matrices}
            named = [(n, p) for n, p in named if id(p) not in taken]
        if named:  # adapters are all matrices of the blocks
            self._parts.append((self._adamw([p for _, p in named]), settings.lr))
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())

    def _adamw(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.AdamW(parameters, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=True)

    def _muon(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.Muon(parameters, lr=s.muon_lr, weight_decay=s.weight_decay)

    def step(self, loss: float = 0.0) -> float | None:
        """Clip, step and clear the gradients; returns the gradient norm before clipping.

        A norm or a `loss` that is not finite leaves weights and state untouched, clears the gradients and returns None.
        (The gradient of a loss that is NaN can be finite: where a comparison with NaN cuts the path, it is zero.)
        """
        self.execution.ranks.sum_gradients(self.parameters)
        self._unscale()
        norm: Any = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        if self.execution.ranks.lockstep:
            norm = norm.full_tensor()
        sound, bounded = math.isfinite(loss), bool(norm.isfinite())
        self.execution.scale.observe(sound, bounded)
        finite = sound and bounded
        if finite:
            factor = lr_factor(self.settings, self.step_count, self.total_steps)
            for optimizer, peak in self._parts:
                for group in optimizer.param_groups:
                    group["lr"] = peak * factor
                optimizer.step()
        self.step_count += 1
        self.clear()
        return float(norm) if finite else None

    def pass_over(self) -> None:
        """A step of the stage that has no gradient: nothing moves, and the schedule goes on with the stage's steps."""
        self.step_count += 1

    def _unscale(self) -> None:
        if self.execution.scale.value != 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.execution.scale.value)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.settings.lr * lr_factor(self.settings, self.step_count, self.total_steps)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What the torch optimizers keep of each parameter that has been stepped, by its name and theirs."""
        return {n: dict(o.state[p]) for n, p in self.named.items() for o, _ in self._parts if o.state.get(p)}

    def load_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `moments` returned."""
        for optimizer, _ in self._parts:
            mine = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.state.clear()
            for name, parameter in self.named.items():
                if name in moments and any(parameter is p for p in mine):
                    optimizer.state[parameter] = dict(moments[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "step_count": self.step_count,
            "parts": [o.state_dict() for o, _ in self._parts],
            "execution": self.execution.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]
        self.execution.load_state_dict(state["execution"])
        for (optimizer, _), part in zip(self._parts, state["parts"], strict=True):
            optimizer.load_state_dict(part)


def lr_factor(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return settings.final_lr_share + (1 - settings.final_lr_share) * shape
