"""Who samples where nothing is trained: an engine in this process, or the rollout workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ponder.model.folder import LoadedModel
from ponder.model.runtime import pick_device
from ponder.recipe import Recipe
from ponder.rollout.base import Engine
from ponder.rollout.native import NativeEngine


class Engines:
    """Opens an engine for one model after another, on a cluster that is started once, and again for a larger model."""

    def __init__(self, recipe: Recipe, warn: Callable[[str], None]) -> None:
        """Opens nothing yet. `warn` hears of workers that are replaced."""
        self._recipe = recipe
        self._warn = warn
        self._cluster = ExitStack()
        self._model = ExitStack()
        self._size = -1
        """Bytes of the model that Ray was started for."""

    @property
    def name(self) -> str:
        """What is written of the engine beside a result."""
        cluster = self._recipe.cluster
        return NativeEngine.name if cluster.kind == "local" else cluster.rollout.engine

    def open(self, model: LoadedModel) -> Engine:
        """An engine that samples from this model; the one before is closed.

        Raises `UsageError` for what Ray or the engine cannot do, `InterruptedRunError` when workers do not start.
        """
        self._model.close()
        recipe = self._recipe
        if recipe.cluster.kind == "local":
            model.decoder.compute_in(recipe.precision)
            return NativeEngine(model.to(pick_device(recipe.device)).decoder, model.tokenizer.decode)
        from ponder.cluster.ray_backend import open_pool
        from ponder.cluster.runtime import Runtime

        size = sum(weight.numel() * weight.element_size() for weight in model.decoder.state_dict().values())
        if size > self._size:
            self._cluster.close()  # its object store was made for a smaller one
            self._cluster.enter_context(Runtime(recipe.cluster, size, device=recipe.device))
            self._size = size
        pool = open_pool(model, recipe.cluster, recipe.precision, self._warn)
        self._model.callback(pool.close)
        pool.publish(0, model.decoder.state_dict())
        return pool

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        self._model.close()
        self._cluster.close()
