"""Who trains: this process, or the ranks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ponder.errors import UsageError
from ponder.model.decoder import Decoder
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import LoadedModel
from ponder.model.lora import merged_decoder
from ponder.model.runtime import pick_device
from ponder.recipe import Recipe
from ponder.training.trainer import LocalTrainer, Trainer, TrainerSettings


def open_trainer(
    model: LoadedModel, settings: TrainerSettings, recipe: Recipe, tell: Callable[[str], None], stack: ExitStack
) -> Trainer:
    """A trainer of this model, without a reference. What must be closed is put on `stack`.

    `tell` hears what a person should know. Raises `UsageError` for what Ray or the trainers cannot do,
    `LostWorkersError` when a rank does not start.
    """
    if recipe.cluster.kind == "local":
        return LocalTrainer(model.to(pick_device(recipe.device)).decoder, settings, tell=tell)
    if isinstance(model.decoder, FallbackDecoder):
        raise UsageError("cluster: ray is for Llama, Qwen2 and Qwen3 models alone: set cluster: local")
    from ponder.cluster.runtime import Runtime
    from ponder.cluster.trainer_group import TrainerGroup

    weights = dict(model.decoder.state_dict())
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    stack.enter_context(Runtime(recipe.cluster, size))
    group = TrainerGroup(model.config, weights, settings, recipe.cluster, tell=tell)
    stack.callback(group.close)
    return group


def trained_decoder(model: LoadedModel, trainer: Trainer) -> Decoder:
    """What a trainer of this model has made of it, whole; adapters are merged in."""
    if isinstance(trainer, LocalTrainer):
        return merged_decoder(trainer.policy)
    decoder = Decoder(model.decoder.config)
    decoder.load_state_dict(dict(trainer.weights()))
    return decoder
