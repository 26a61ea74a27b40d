"""A reward model in a process of its own: its scores, its errors, and its death."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray")

import torch

from ponder.cluster.reward_worker import SeparateRewardModel, send_reward_model
from ponder.cluster.runtime import Runtime
from ponder.errors import BrokenInputError, InterruptedRunError
from ponder.model.decoder import DTYPES, Precision
from ponder.model.load import load_model
from ponder.model.reward_model import RewardModel, load_reward_model, save_reward_model
from ponder.recipe import ClusterSettings

SETTINGS = ClusterSettings.model_validate(
    {
        "kind": "ray",
        "rollout": {"cpus": 0},
        "trainer": {"cpus": 0},
        "reward_models": "separate",
        "max_restarts": 1,
    }
)


@dataclass
class LengthModel:
    """Scores a reply by its length; the file `trap`, while it exists, names a signal to die of."""

    trap: Path

    def score_replies(self, prompts: list[str], replies: list[str]) -> list[float]:
        if self.trap.exists():
            number = int(self.trap.read_text())
            if replies[0] != "again and again":
                self.trap.unlink()
            os.kill(os.getpid(), number)
            time.sleep(3600)  # a signal is not taken at once
        if "" in replies:
            raise BrokenInputError("an empty reply")
        return [float(len(reply)) for reply in replies]


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    with Runtime(SETTINGS, reward_models=1):
        import test_reward_worker
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(test_reward_worker)
        yield
        cloudpickle.unregister_pickle_by_value(test_reward_worker)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def model(tmp_path: Path, warnings: list[str]) -> Iterator[SeparateRewardModel]:
    judge = LengthModel(tmp_path / "trap")
    model = SeparateRewardModel("helpful", lambda: judge, SETTINGS, warnings.append)
    yield model
    model.close()


def set_silent_s(model: SeparateRewardModel, silent_s: float) -> None:
    deadlines = SETTINGS.deadlines.model_copy(update={"silent_s": silent_s})
    model._settings = SETTINGS.model_copy(update={"deadlines": deadlines})


@pytest.mark.parametrize(
    ("by", "why"), [(signal.SIGKILL, "is gone"), (signal.SIGSTOP, "was silent for 5 s while the driver waited for 2")]
)
def test_a_lost_worker_is_replaced_and_asked_again(
    by: int, why: str, model: SeparateRewardModel, warnings: list[str], tmp_path: Path
) -> None:
    assert model.score_replies(["p", "p"], ["four", "seven"]) == [4.0, 5.0]
    set_silent_s(model, 5)
    (tmp_path / "trap").write_text(str(int(by)))
    assert model.score_replies(["p", "p"], ["four", "seven"]) == [4.0, 5.0]
    assert len(warnings) == 1
    assert re.match(rf"the worker of the reward model 'helpful' {why}", warnings[0])


def test_whoever_waits_for_a_sign_of_life_does_not_wait_for_it_alone(
    model: SeparateRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of these scores would take an hour."""
    monkeypatch.setattr("ponder.cluster.reward_worker._BEAT_S", 3600.0)
    set_silent_s(model, 4 * 3600)
    assert [model.score_replies(["p"], ["x" * n]) for n in range(1, 11)] == [[float(n)] for n in range(1, 11)]


def test_what_the_model_raises_and_too_many_losses_end_the_run(model: SeparateRewardModel, tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match=r"^an empty reply$"):
        model.score_replies(["p"], [""])
    (tmp_path / "trap").write_text("9")
    with pytest.raises(InterruptedRunError, match=r"max_restarts \(1\) is used up"):
        model.score_replies(["p"], ["again and again"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_worker_scores_exactly_as_the_driver_does(precision: Precision, tmp_path: Path) -> None:
    base = load_model("mini")
    base.decoder.initialise(0)  # a base of the package may change
    model = RewardModel.on(base, 1, kind="pairwise", score="reply", template="mini")
    save_reward_model(tmp_path / "rm", model)
    prompts, replies = ["What is 2 + 3?"] * 3, ["It is 5.", "It is 6, or 7.", "I do not know."]
    shared = load_reward_model(tmp_path / "rm", DTYPES[precision])
    threads = torch.get_num_threads()
    torch.set_num_threads(SETTINGS.reward_models.threads)
    expected = shared.score_replies(prompts, replies)
    torch.set_num_threads(threads)
    separate = SeparateRewardModel(
        "rm", send_reward_model(str(tmp_path / "rm"), DTYPES[precision], "cpu"), SETTINGS, print
    )
    shutil.rmtree(tmp_path / "rm")  # another node may not see it
    try:
        assert separate.score_replies(prompts, replies) == expected
        assert len(set(expected)) == 3
    finally:
        separate.close()


def test_what_keeps_a_model_from_being_made_ends_the_run() -> None:
    def make() -> LengthModel:
        raise BrokenInputError("the weights do not fit")

    model = SeparateRewardModel("helpful", make, SETTINGS, print)
    with pytest.raises(BrokenInputError, match=r"^the weights do not fit$"):
        model.score_replies(["p"], ["reply"])
    model.close()
