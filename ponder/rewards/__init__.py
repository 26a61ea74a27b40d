"""Rewards by name. See `ponder/rewards/base.py` for what a reward is and how to add one."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ponder.errors import UsageError
from ponder.recipe import RewardSettings
from ponder.rewards.base import RewardContext, is_finished, judge

__all__ = ["RewardContext", "get_reward", "is_finished", "judge", "reward_names", "score_rollouts"]


@functools.cache
def reward_names() -> tuple[str, ...]:
    """The names of all rewards, sorted: the modules of this folder but `base` and those that begin with `_`."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in modules if name != "base" and not name.startswith("_")))


def get_reward(name: str, options: Mapping[str, Any] | None = None) -> Callable[[RewardContext], float]:
    """The reward of that name with its options bound. Raises `UsageError` for an unknown name or option."""
    if name not in reward_names():
        raise UsageError(f"rewards: there is no reward `{name}`: {_hint(name, reward_names())}")
    function: Callable[..., float] = importlib.import_module(f"{__name__}.{name}").reward
    valid = list(inspect.signature(function).parameters)[1:]  # the first is the context
    for option in options or {}:
        if option not in valid:
            raise UsageError(f"rewards.{name}.options: there is no option `{option}`: {_hint(option, valid)}")
    return functools.partial(function, **(options or {}))


def score_rollouts(contexts: Sequence[RewardContext], rewards: Mapping[str, RewardSettings]) -> dict[str, list[float]]:
    """Each reward by name, a value a rollout in the given order, before weights: every part is logged apart.

    Raises `UsageError` for an unknown reward or option.
    """
    functions = {name: get_reward(name, settings.options) for name, settings in rewards.items()}
    return {name: [function(context) for context in contexts] for name, function in functions.items()}


def _hint(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"there are {', '.join(valid)}" if valid else "it takes none"
