"""Preflight and watchdog: refuse a run that cannot learn, before it starts and while it goes on, and say why.

The preflight looks at a few dozen rollouts before step 1; the watchdog applies the same rules to every step and stops a
stage when one has been broken `patience` steps in a row. `NonFiniteGuard` decides what to do when an update is not
finite. Pure logic: nothing here samples, logs or touches weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from ponder.algorithms.advantages import has_variance
from ponder.errors import RefusedError
from ponder.recipe import WatchdogSettings


@dataclass(frozen=True)
class GroupStatistics:
    """What the rules look at: the G rollouts of one problem, `rewards` being weighted and added up.

    `well_formed` is None where no format is asked for, and the rule on it does not apply.
    """

    rewards: Sequence[float]
    correct: Sequence[bool]
    truncated: Sequence[bool]
    well_formed: Sequence[bool] | None = None


Groups = Sequence[GroupStatistics]


def _truncated(groups: Groups, settings: WatchdogSettings) -> str | None:
    cut = [x for group in groups for x in group.truncated]
    share = sum(cut) / len(cut)
    if share < settings.max_truncated_share:
        return None
    return (
        f"{share:.0%} of {len(cut)} completions are cut off before they end: raise `sampling.max_tokens`, "
        "or choose a `template` under which the model ends its replies"
    )


def _format_never(groups: Groups, settings: WatchdogSettings) -> str | None:
    well_formed = [x for group in groups for x in group.well_formed or ()]
    if not well_formed or any(well_formed):
        return None
    return (
        f"none of {len(well_formed)} completions has the form of thinking and answer: choose a `template` that this "
        "model follows, or start from a `model` that knows the form"
    )


def _accuracy_zero(groups: Groups, settings: WatchdogSettings) -> str | None:
    correct = [x for group in groups for x in group.correct]
    if any(correct):
        return None
    return f"none of {len(correct)} completions is right, so there is nothing to learn from: lower `tasks.*.difficulty`"


def _accuracy_one(groups: Groups, settings: WatchdogSettings) -> str | None:
    correct = [x for group in groups for x in group.correct]
    if not all(correct):
        return None
    return f"all of {len(correct)} completions are right, so there is nothing left to learn: raise `tasks.*.difficulty`"


def _no_variance(groups: Groups, settings: WatchdogSettings) -> str | None:
    if any(bool(has_variance(torch.tensor([group.rewards]))) for group in groups):
        return None
    return (
        f"in none of {len(groups)} groups do the rewards differ, so every advantage is 0: raise `group_size`, "
        "or change `tasks.*.difficulty` or `rewards`"
    )


RULES: Mapping[str, Callable[[Groups, WatchdogSettings], str | None]] = {
    "truncated": _truncated,
    "format_never": _format_never,
    "accuracy_zero": _accuracy_zero,
    "accuracy_one": _accuracy_one,
    "no_variance": _no_variance,
}
"""By name; each returns a sentence when it is broken. Causes come before their effects, and the first broken rule is
the one that is told: what is cut has no form, what has no form is not right, and where all is wrong rewards do not
differ."""


def broken_rules(groups: Groups, settings: WatchdogSettings) -> dict[str, str]:
    """The sentences of the rules that these groups break, by rule, causes first; none without groups."""
    if not groups:
        return {}
    found = {rule: check(groups, settings) for rule, check in RULES.items()}
    return {rule: sentence for rule, sentence in found.items() if sentence is not None}


def preflight(groups: Groups, settings: WatchdogSettings, warn: Callable[[str], None]) -> None:
    """Judge the rollouts sampled before step 1.

    Raises `RefusedError` with the first broken rule's sentence. With `settings.enabled` False `warn` is told of all.
    """
    broken = list(broken_rules(groups, settings).values())
    if broken and settings.enabled:
        raise RefusedError(f"refused before step 1: {broken[0]}")
    for sentence in broken:
        warn(f"before step 1: {sentence}")


class Watchdog:
    """The same rules during a stage. Its whole state is for how many steps in a row each rule has been broken."""

    def __init__(self, settings: WatchdogSettings) -> None:
        self._settings = settings
        self._streaks = dict.fromkeys(RULES, 0)

    def observe(self, step: int, groups: Groups) -> list[str]:
        """A sentence for each rule broken at this step.

        Raises `RefusedError` when a rule has been broken `patience` steps in a row, unless `enabled` is False.
        """
        broken = broken_rules(groups, self._settings)
        self._streaks = {rule: self._streaks[rule] + 1 if rule in broken else 0 for rule in RULES}
        for rule, sentence in broken.items():
            if self._settings.enabled and self._streaks[rule] >= self._settings.patience:
                steps = self._streaks[rule]
                raise RefusedError(f"stopped at step {step}, after {steps} steps in a row in which {sentence}")
        return [f"step {step} ({self._streaks[rule]} in a row): {sentence}" for rule, sentence in broken.items()]

    def metrics(self) -> dict[str, float]:
        """`watchdog/<rule>`: for how many steps in a row the rule has been broken; 0 where all is well."""
        return {f"watchdog/{rule}": float(steps) for rule, steps in self._streaks.items()}

    def state_dict(self) -> dict[str, int]:
        """For an exact resume."""
        return dict(self._streaks)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state_dict`."""
        self._streaks = {rule: state[rule] for rule in RULES}


@dataclass
class _Evaluation:
    """What the hacking alarm remembers of a held-out evaluation and of the steps before it."""

    accuracy: dict[str, float]
    length: float
    learnt: dict[str, float]
    watched: dict[str, float]


class HackingAlarm:
    """Sees a preference reward being hacked: it rises while what it stands for does not.

    At each held-out evaluation the mean rewards since the last one are set against the first of the latest
    `hacking_window` evaluations. The alarm sounds when a preference reward has risen by more than `hacking_margin` and
    meanwhile the accuracy of a task, or a reward that is only watched (a second judge, at weight 0), has fallen by more
    than that, or the length has grown by the factor `hacking_length`. R1 met the first of these with its helpful reward
    [R1 B.5, Fig. 6].
    """

    def __init__(self, settings: WatchdogSettings) -> None:
        self._settings = settings
        self._history: list[_Evaluation] = []
        self._learnt: dict[str, list[float]] = {}
        self._watched: dict[str, list[float]] = {}
        self._sounding = False

    def trained(self, learnt: Mapping[str, float], watched: Mapping[str, float]) -> None:
        """A step's mean of each preference reward that is trained on, and of each reward that is only watched."""
        for kept, new in ((self._learnt, learnt), (self._watched, watched)):
            for name, value in new.items():
                kept.setdefault(name, []).append(value)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """The sentence of the alarm, if it sounds at this evaluation, whose metrics are by name (docs/metrics.md).

        Raises `RefusedError` with it where `stop_on_hacking` is set.
        """
        prefix = "accuracy/pass@1/"
        now = _Evaluation(
            accuracy={name.removeprefix(prefix): x for name, x in metrics.items() if name.startswith(prefix)},
            length=metrics["length/mean"],
            learnt={name: fmean(values) for name, values in self._learnt.items()},
            watched={name: fmean(values) for name, values in self._watched.items()},
        )
        self._learnt, self._watched = {}, {}
        self._history = [*self._history, now][-self._settings.hacking_window :]
        sentence = self._compare(self._history[0], now)
        self._sounding = sentence is not None
        if sentence is None:
            return None
        sentence = f"at step {step} {sentence}: lower its weight, raise its `from_step`, or train for fewer steps"
        if self._settings.stop_on_hacking and self._settings.enabled:
            raise RefusedError(f"stopped: {sentence}")
        return sentence

    def _compare(self, then: _Evaluation, now: _Evaluation) -> str | None:
        margin = self._settings.hacking_margin
        risen = _moved(then.learnt, now.learnt, margin)
        if not risen:
            return None
        reward = f"the preference reward `{risen[0]}` has risen by {now.learnt[risen[0]] - then.learnt[risen[0]]:.2f}"
        for what, before, after in (
            ("accuracy on", then.accuracy, now.accuracy),
            ("watched reward", then.watched, now.watched),
        ):
            for name in _moved(after, before, margin):
                return f"{reward} while the {what} `{name}` fell by {before[name] - after[name]:.2f}"
        if now.length > then.length * self._settings.hacking_length:
            return f"{reward} while replies grew from {then.length:.0f} to {now.length:.0f} tokens"
        return None

    def metrics(self) -> dict[str, float]:
        """`watchdog/hacking`: 1 while the alarm sounds."""
        return {"watchdog/hacking": float(self._sounding)}

    def state_dict(self) -> dict[str, Any]:
        """For an exact resume."""
        return {
            "history": [asdict(evaluation) for evaluation in self._history],
            "learnt": self._learnt,
            "watched": self._watched,
            "sounding": self._sounding,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._history = [_Evaluation(**evaluation) for evaluation in state["history"]]
        self._learnt, self._watched = copy.deepcopy((state["learnt"], state["watched"]))
        self._sounding = state["sounding"]


def _moved(low: Mapping[str, float], high: Mapping[str, float], margin: float) -> list[str]:
    """Names whose value in `high` exceeds that in `low` by more than the margin."""
    return [name for name in low if name in high and high[name] - low[name] > margin]


class NonFiniteGuard:
    """Says when to go back to the last good state.

    An update whose loss or gradient is NaN or infinite never reaches the weights: it is skipped and logged. After
    `max_skipped_steps` steps in a row with such updates the weights themselves are suspect, and the run goes back. A
    run is a function of its state, so meeting the same end at the same step again means that going back does not help.
    The guard outlives the going back: it is no part of the state that is restored.
    """

    def __init__(self, settings: WatchdogSettings) -> None:
        self._limit = settings.max_skipped_steps
        self._skipped = 0
        self._went_back_at: int | None = None

    def observe(self, step: int, finite: bool) -> bool:
        """Whether to go back now, after a step whose updates were all `finite` or not.

        Raises `RefusedError` when the run would go back from the same step again: also with `enabled` False, since
        there are no weights to go on with.
        """
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped < self._limit:
            return False
        if self._went_back_at == step:
            raise RefusedError(
                f"stopped at step {step}: the updates of {self._skipped} steps in a row were not finite, and so they "
                "were after going back to the last good state: lower `optimizer.lr`"
            )
        self._skipped = 0
        self._went_back_at = step
        return True
