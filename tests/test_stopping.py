"""SIGTERM lets a training step end, saves it and stops: nothing is done twice, and the result is that of one start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ponder.errors import InterruptedRunError
from ponder.pipeline import _sigterm_stops, run_recipe
from ponder.run import RunFolder
from ponder.stages import fine_tune
from ponder.training import trainer

STEPS = 4
TASKS = {"arithmetic": {"difficulty": 1}}
STAGES: dict[str, dict[str, Any]] = {
    "fine_tune": {
        "verb": "fine_tune",
        "on_policy": {"tasks": TASKS, "prompts_per_step": 2, "samples": 2, "sampling": {"max_tokens": 6}},
        "steps": STEPS,
    },
    "train_reward": {"verb": "train_reward", "data": ["mini-world"], "rows": 30, "rows_per_step": 7},
}
UPDATE = {"fine_tune": (fine_tune, "distill_step"), "train_reward": (trainer, "reward_step")}
"""By verb, the function that does a step's update, and where it is looked up."""


@pytest.fixture(params=STAGES)
def recipe(request: pytest.FixtureRequest, tiny_model: Path) -> dict[str, Any]:
    """One training stage whose only regular checkpoint is the last step's."""
    stage = {**STAGES[request.param], "model": str(tiny_model), "template": "mini", "checkpoint_every": 100}
    if "on_policy" in stage:
        stage["on_policy"] = {**stage["on_policy"], "teacher": str(tiny_model)}
    return {"name": "stopped", "threads": 1, "judging": {"workers": 0}, "stages": {"stage": stage}}


def results(run: Path) -> dict[str, Any]:
    """Weights, and every metric that is no measurement of time."""
    files = {file.name: file.read_bytes() for file in sorted((run / "stages" / "stage" / "model").iterdir())}
    lines = [
        {key: value for key, value in line.items() if key not in ("time", "elapsed") and not key.startswith("speed/")}
        for line in RunFolder(run).metrics("stage")
    ]
    return {**files, "metrics": lines}


def count_updates(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, signalled_at: int) -> list[int]:
    """Let SIGTERM come before the update of that number; the list grows by one with each update."""
    module, name = UPDATE[recipe["stages"]["stage"]["verb"]]
    update = getattr(module, name)
    done: list[int] = []

    def signalled(*arguments: Any, **options: Any) -> Any:
        done.append(len(done) + 1)
        if len(done) == signalled_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments, **options)

    monkeypatch.setattr(module, name, signalled)
    return done


def test_a_step_is_ended_and_saved_and_none_is_done_twice(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(recipe, run_dir=tmp_path / "whole", quiet=True)
    done = count_updates(recipe, monkeypatch, signalled_at=2)
    with pytest.raises(InterruptedRunError, match="stopped in stage 'stage': the same command goes on") as caught:
        run_recipe(recipe, run_dir=tmp_path / "stopped", quiet=True)
    assert caught.value.exit_code == 5
    assert RunFolder(tmp_path / "stopped").manifest().stages["stage"].state == "interrupted"
    assert done == [1, 2]
    run_recipe(recipe, run_dir=tmp_path / "stopped", quiet=True)
    assert len(done) == STEPS
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_after_stop_s_the_last_checkpoint_counts(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(recipe, run_dir=tmp_path / "whole", quiet=True)
    done = count_updates({**recipe}, monkeypatch, signalled_at=2)
    with pytest.raises(InterruptedRunError, match="stopped in stage 'stage'"):
        run_recipe({**recipe, "stop_s": 0}, run_dir=tmp_path / "stopped", quiet=True)
    run_recipe(recipe, run_dir=tmp_path / "stopped", quiet=True)
    assert len(done) == 2 + STEPS  # there was no checkpoint yet
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


# --- the handler ------------------------------------------------------------------------------------------------------


def tell_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_where_no_loop_heeds_it_a_stop_comes_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError), _sigterm_stops(60) as stop:
        tell_to_stop()
    assert not stop.made
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_sent_twice_over_is_one_stop_and_a_later_one_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(InterruptedRunError), _sigterm_stops(60) as stop:
        stop.heeded = True
        tell_to_stop()
        clock[0] += 0.9
        tell_to_stop()
        assert stop.made
        clock[0] += 0.2
        tell_to_stop()
        pytest.fail("the second stop was not heeded")


def test_a_step_that_does_not_end_is_interrupted() -> None:
    started = time.monotonic()
    with pytest.raises(InterruptedRunError), _sigterm_stops(0.2) as stop:
        stop.heeded = True
        tell_to_stop()
        time.sleep(3600)
    assert time.monotonic() - started >= 0.2
