"""What a training stage does when its cluster loses trainer ranks: back to the checkpoint, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ponder.errors import InterruptedRunError, LostWorkersError
from ponder.run import StageContext

T = TypeVar("T")


def despite_lost_ranks(context: StageContext, train: Callable[[], T], restart: Callable[[], None]) -> T:
    """What `train` returns, which begins at the last checkpoint; after a `LostWorkersError`, `restart` and once more.

    Raises `InterruptedRunError` when ranks are lost more often than `cluster.max_restarts`.
    """
    losses = 0
    while True:
        try:
            if losses:  # and who else is lost meanwhile
                restart()
            return train()
        except LostWorkersError as error:
            losses += 1
            if losses > context.recipe.cluster.max_restarts:
                raise InterruptedRunError(str(error)) from error
            context.reporter.warn(f"{error}; back to the last checkpoint ({losses})")
