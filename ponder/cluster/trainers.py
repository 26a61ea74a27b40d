"""Who trains: this process, or the ranks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from ponder.errors import UsageError
from ponder.model.decoder import Decoder
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import LoadedModel
from ponder.model.lora import merged_decoder
from ponder.model.reward_model import RewardModel
from ponder.model.runtime import pick_device
from ponder.recipe import Recipe
from ponder.training.trainer import LocalRewardTrainer, LocalTrainer, RewardTrainer, Trainer, TrainerSettings

if TYPE_CHECKING:
    from ponder.cluster.trainer_group import RewardTrainerGroup, TrainerGroup

G = TypeVar("G", "TrainerGroup", "RewardTrainerGroup")


def open_trainer(
    model: LoadedModel, settings: TrainerSettings, recipe: Recipe, tell: Callable[[str], None], stack: ExitStack
) -> Trainer:
    """A trainer of this model, without a reference. What must be closed is put on `stack`.

    `tell` hears what a person should know. Raises `UsageError` for what Ray or the trainers cannot do,
    `LostWorkersError` when a rank does not start.
    """
    if recipe.cluster.kind == "local":
        return LocalTrainer(model.to(pick_device(recipe.device)).decoder, settings, tell=tell)
    from ponder.cluster.trainer_group import TrainerGroup

    return _open_ranks(TrainerGroup, model.decoder, settings, recipe, tell, stack)


def open_reward_trainer(
    model: RewardModel, settings: TrainerSettings, recipe: Recipe, tell: Callable[[str], None], stack: ExitStack
) -> RewardTrainer:
    """A trainer of this reward model's decoder; otherwise as `open_trainer`."""
    if recipe.cluster.kind == "local":
        return LocalRewardTrainer(model.to(pick_device(recipe.device)).decoder, settings, tell)
    from ponder.cluster.trainer_group import RewardTrainerGroup

    return _open_ranks(RewardTrainerGroup, model.decoder, settings, recipe, tell, stack)


def _open_ranks(
    group: type[G],
    decoder: Decoder,
    settings: TrainerSettings,
    recipe: Recipe,
    tell: Callable[[str], None],
    stack: ExitStack,
) -> G:
    if isinstance(decoder, FallbackDecoder):
        raise UsageError("cluster: ray is for Llama, Qwen2 and Qwen3 models alone: set cluster: local")
    from ponder.cluster.runtime import Runtime

    weights = dict(decoder.state_dict())
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    stack.enter_context(Runtime(recipe.cluster, size, device=recipe.device))
    ranks = group(decoder.config, weights, settings, recipe.cluster, tell=tell)
    stack.callback(ranks.close)
    return ranks


def trained_decoder(model: LoadedModel, trainer: Trainer) -> Decoder:
    """What a trainer of this model has made of it, whole; adapters are merged in."""
    if isinstance(trainer, LocalTrainer):
        return merged_decoder(trainer.model)
    decoder = Decoder(model.decoder.config)
    decoder.load_state_dict(dict(trainer.weights()))
    return decoder
