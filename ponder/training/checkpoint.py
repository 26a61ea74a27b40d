"""The checkpoints of a stage: the newest, and the one before it for the day when the disk has damaged the newest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.training.sharded_checkpoint import remove_others
from ponder.training.state_file import State, load_state, save_state
from ponder.training.trainer import Learner

NEWEST, BEFORE = "state.pt", "state-before.pt"

_BEGINNING: State = {}
"""What stands for the checkpoint before the first."""


class Checkpoints:
    """All that a stage can go back to, in one folder. Used by one process at a time.

    A trainer that keeps its part in files of its own has a subfolder there for each checkpoint. It stays as long as the
    state that names it.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        """`warn` hears of a checkpoint that is damaged."""
        self.folder = folder
        self.exist = False
        """Whether this process has saved or found one."""
        self._warn = warn
        self._newest, self._before = folder / NEWEST, folder / BEFORE
        self._newest_is_whole = True
        self._parts: tuple[str | None, str | None] = (None, None)
        """The trainer's subfolder of the newest checkpoint that is whole, and of the one before."""

    def save(self, trainer: Learner, state: Mapping[str, object]) -> None:
        """Add a checkpoint: the trainer's state, and the stage's own, of which `step` is read here.

        The one before the last goes. Raises `BrokenInputError` when the disk refuses; what was saved stays.
        """
        name = f"trainer-{state['step']}"
        free = next(n for n in (name, f"{name}-again", f"{name}-anew") if n not in self._parts)
        own = trainer.save_state(self.folder, free)
        if not self._newest.exists() and not self._before.exists():
            save_state(self._before, _BEGINNING)
        whole = {**state, "trainer": own, "parts_before": self._parts[0]}
        # a newest one that is damaged makes room without taking the place of the one before
        save_state(self._newest, whole, self._before if self._newest_is_whole else None)
        self._parts = own.get("folder"), self._parts[0]
        self.exist = self._newest_is_whole = True
        remove_others(self.folder, keep=[name for name in self._parts if name is not None])

    def load(self, trainer: Learner) -> State | None:
        """Bring the trainer back to the newest checkpoint that is whole, and return the stage's own state of it; None
        where a stage begins. Warns where that is not the newest of all.

        Raises `DamagedCheckpointError` when none is whole.
        """
        for unfinished in self.folder.glob(".state*.tmp-*"):  # by a process that was killed while it wrote
            unfinished.unlink(missing_ok=True)
        damage: DamagedCheckpointError | None = None
        for path in (self._newest, self._before):
            if not path.exists():
                continue
            try:
                state = load_state(path)
                if state:
                    trainer.load_state(self.folder, state["trainer"])
            except DamagedCheckpointError as error:
                damage = damage or error
            else:
                return self._go_on(state, damage)
        if damage is not None:
            both = ", as the checkpoint before it is" if self._newest.exists() and self._before.exists() else ""
            raise DamagedCheckpointError(f"{damage}{both}: start the stage again with --fresh") from damage
        return None

    def _go_on(self, state: State, damage: DamagedCheckpointError | None) -> State | None:
        """From a state that is whole, though perhaps not the newest."""
        if not state and self.exist:  # the trainer has moved, and nothing here can bring it back
            why = damage or f"{self._newest} is missing"
            raise BrokenInputError(f"{why}: the same command starts the stage from its beginning")
        if damage is not None:
            where = f"step {state['step']}" if state else "its beginning"
            self._warn(f"{damage}: the stage goes back to the checkpoint before it, and on from {where}")
        self._newest_is_whole = damage is None
        if not state:
            return None
        self._parts = state["trainer"].get("folder"), state.get("parts_before") if damage is None else None
        self.exist = True
        return state
