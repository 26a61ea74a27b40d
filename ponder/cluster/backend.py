"""What a backend is: who samples and who trains, behind one interface, so that a stage need not know where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ponder.model.decoder import Decoder, Precision
from ponder.model.folder import LoadedModel
from ponder.model.lora import merged_decoder
from ponder.rewards import RewardModel
from ponder.rollout.base import Engine
from ponder.rollout.native import NativeEngine
from ponder.training.trainer import LocalTrainer, Trainer, TrainerSettings


class Backend(Protocol):
    """An engine and a trainer that belong together."""

    @property
    def engine(self) -> Engine:
        """Samples; a `PoolEngine` where it works in other processes."""
        ...

    @property
    def trainer(self) -> Trainer:
        """Holds the weights that learn."""
        ...

    def publish(self) -> None:
        """Let the engine sample under the trainer's newest weights; does nothing where it does already."""
        ...

    def recover(self) -> None:
        """After a `LostWorkersError`: drop what is under way, and replace what is lost. The trainer is then without
        state until `load_state`."""
        ...

    def policy(self) -> Decoder:
        """The trained model, whole, to be saved; adapters are merged in."""
        ...

    def separate(self, name: str, folder: str, precision: Precision) -> RewardModel | None:
        """The reward model `name` of a folder in a process of its own, its weights in `precision`; None where the
        settings do not ask for one. Raises `BrokenInputError` for a folder that is no reward model, or damaged."""
        ...

    def metrics(self) -> dict[str, float]:
        """What this step cost besides computing: see docs/metrics.md."""
        ...

    def close(self) -> None:
        """End processes and free memory."""
        ...


class LocalBackend:
    """One process samples and trains the same weights."""

    def __init__(
        self, model: LoadedModel, settings: TrainerSettings, keep_reference: bool, tell: Callable[[str], None]
    ) -> None:
        """`tell` hears what a person should know."""
        self.trainer = LocalTrainer(model.decoder, settings, keep_reference, tell)
        self.engine = NativeEngine(model.decoder, model.tokenizer.decode)

    def publish(self) -> None:
        self.engine.version = self.trainer.version

    def recover(self) -> None:
        """Nothing that this process holds can be lost while it lives."""

    def policy(self) -> Decoder:
        return merged_decoder(self.trainer.model)

    def separate(self, name: str, folder: str, precision: Precision) -> RewardModel | None:
        return None

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.trainer.close()
