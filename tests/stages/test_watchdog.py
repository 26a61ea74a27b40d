"""Preflight, watchdog and the guard against updates that are not finite: when they speak, and what they name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import RefusedError
from ponder.recipe import WatchdogSettings
from ponder.stages.watchdog import (
    RULES,
    GroupStatistics,
    HackingAlarm,
    NonFiniteGuard,
    Watchdog,
    broken_rules,
    preflight,
)

SETTINGS = WatchdogSettings(patience=3, max_skipped_steps=3)
OFF = WatchdogSettings(patience=3, enabled=False)

HEALTHY = GroupStatistics(
    rewards=[1.0, 0.0, 0.0, 1.0],
    correct=[True, False, False, True],
    truncated=[False, False, True, False],
    well_formed=[True, True, False, True],
)
ALL_CUT = GroupStatistics([0.0] * 4, [False] * 4, [True] * 4, [False] * 4)
NO_FORM = GroupStatistics([0.0] * 4, [False] * 4, [False] * 4, [False] * 4)
ALL_WRONG = GroupStatistics([0.0, 0.1, 0.0, 0.0], [False] * 4, [False] * 4, [True, False, True, True])
ALL_RIGHT = GroupStatistics([1.0, 1.1, 1.0, 1.0], [True] * 4, [False] * 4, [True] * 4)
NO_VARIANCE = [
    GroupStatistics([1.0] * 4, [True] * 4, [False] * 4, [True] * 4),
    GroupStatistics([0.0] * 4, [False] * 4, [False] * 4, [True] * 4),
]


def silent(text: str) -> None:
    raise AssertionError(text)


def test_a_healthy_run_passes() -> None:
    preflight([HEALTHY] * 8, SETTINGS, warn=silent)
    preflight([], SETTINGS, warn=silent)


@pytest.mark.parametrize(
    ("groups", "rule", "setting"),
    [
        ([ALL_CUT] * 8, "truncated", "sampling.max_tokens"),
        ([NO_FORM] * 8, "format_never", "template"),
        ([ALL_WRONG] * 8, "accuracy_zero", "tasks.*.difficulty"),
        ([ALL_RIGHT] * 8, "accuracy_one", "tasks.*.difficulty"),
        (NO_VARIANCE, "no_variance", "group_size"),
    ],
)
def test_each_rule_refuses_and_names_its_setting(groups: list[GroupStatistics], rule: str, setting: str) -> None:
    assert next(iter(broken_rules(groups, SETTINGS))) == rule
    with pytest.raises(RefusedError, match=setting.replace(".", r"\.").replace("*", r"\*")) as error:
        preflight(groups, SETTINGS, warn=silent)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_hard_and_easy_problems_differ_in_what_to_do() -> None:
    with pytest.raises(RefusedError, match="lower `tasks"):
        preflight([ALL_WRONG], SETTINGS, warn=silent)
    with pytest.raises(RefusedError, match="raise `tasks"):
        preflight([ALL_RIGHT], SETTINGS, warn=silent)


@pytest.mark.parametrize("groups", [[ALL_CUT], [NO_FORM], [ALL_WRONG], [ALL_RIGHT], NO_VARIANCE])
def test_one_healthy_group_is_enough(groups: list[GroupStatistics]) -> None:
    assert broken_rules([*groups, HEALTHY, HEALTHY], SETTINGS) == {}


def test_truncated_share_is_compared_with_the_setting() -> None:
    half = GroupStatistics([1.0, 0.0], [True, False], [True, False], [True, False])
    assert "truncated" not in broken_rules([half], WatchdogSettings(max_truncated_share=0.51))
    assert "truncated" in broken_rules([half], WatchdogSettings(max_truncated_share=0.5))


def test_format_is_only_judged_where_it_is_asked_for() -> None:
    group = GroupStatistics([1.0, 0.0], [True, False], [False, False], None)
    assert broken_rules([group], SETTINGS) == {}


def test_rounding_is_no_variance() -> None:
    group = GroupStatistics([0.1 + 0.2, 0.3], [True, False], [False, False], [True, True])
    assert list(broken_rules([group], SETTINGS)) == ["no_variance"]


def test_disabled_says_what_it_sees_and_refuses_nothing() -> None:
    heard: list[str] = []
    preflight([ALL_CUT], OFF, warn=heard.append)
    assert len(heard) == len(broken_rules([ALL_CUT], OFF)) == 4
    watchdog = Watchdog(OFF)
    assert all(watchdog.observe(step, [ALL_CUT]) for step in range(20))
    assert watchdog.metrics()["watchdog/truncated"] == 20


def test_watchdog_stops_after_patience_steps_in_a_row() -> None:
    watchdog = Watchdog(SETTINGS)
    assert len(watchdog.observe(1, [ALL_WRONG])) == 1
    watchdog.observe(2, [ALL_WRONG])
    assert watchdog.metrics()["watchdog/accuracy_zero"] == 2
    with pytest.raises(RefusedError, match=r"step 3.*difficulty"):
        watchdog.observe(3, [ALL_WRONG])


def test_a_good_step_starts_the_count_anew() -> None:
    watchdog = Watchdog(SETTINGS)
    for step in range(10):
        watchdog.observe(3 * step, [ALL_WRONG])
        watchdog.observe(3 * step + 1, [ALL_WRONG])
        assert watchdog.observe(3 * step + 2, [HEALTHY]) == []
    assert set(watchdog.metrics().values()) == {0.0}


def test_rules_count_apart() -> None:
    """Broken in turns, neither of two rules lasts."""
    watchdog = Watchdog(SETTINGS)
    for step in range(10):
        watchdog.observe(step, [ALL_WRONG if step % 2 else ALL_RIGHT])


@given(st.lists(st.sampled_from([HEALTHY, ALL_WRONG, ALL_RIGHT, ALL_CUT]), max_size=12), st.integers(0, 12))
def test_a_resumed_watchdog_stops_where_an_unbroken_one_does(groups: list[GroupStatistics], cut: int) -> None:
    def stops(resume: bool) -> int | None:
        watchdog = Watchdog(SETTINGS)
        for step, group in enumerate(groups):
            if resume and step == cut:
                state, watchdog = watchdog.state_dict(), Watchdog(SETTINGS)
                watchdog.load_state_dict(state)
            try:
                watchdog.observe(step, [group])
            except RefusedError:
                return step
        return None

    assert stops(resume=True) == stops(resume=False)


def test_every_rule_is_logged() -> None:
    assert list(Watchdog(SETTINGS).metrics()) == [f"watchdog/{rule}" for rule in RULES]


# --- NonFiniteGuard ------------------------------------------------------------------------------------------------


def test_single_bad_updates_are_skipped_for_ever() -> None:
    guard = NonFiniteGuard(SETTINGS)
    for step in range(30):
        assert not guard.observe(step, finite=step % 3 == 0)


def test_three_in_a_row_go_back() -> None:
    guard = NonFiniteGuard(SETTINGS)
    assert [guard.observe(step, finite=False) for step in (5, 6, 7)] == [False, False, True]


def test_the_same_end_again_is_refused() -> None:
    guard = NonFiniteGuard(SETTINGS)
    for step in (5, 6, 7):
        guard.observe(step, finite=False)
    for step in (4, 5, 6):  # from the last good state on
        assert not guard.observe(step, finite=step < 5)
    with pytest.raises(RefusedError, match=r"step 7.*optimizer\.lr"):
        guard.observe(7, finite=False)


def test_another_end_later_may_go_back_again() -> None:
    guard = NonFiniteGuard(SETTINGS)
    went_back = [guard.observe(step, finite=False) for step in (5, 6, 7, 20, 21, 22)]
    assert went_back == [False, False, True, False, False, True]


def test_the_guard_works_with_the_watchdog_off() -> None:
    guard = NonFiniteGuard(WatchdogSettings(enabled=False, max_skipped_steps=1))
    assert guard.observe(1, finite=math.isfinite(math.nan))
    with pytest.raises(RefusedError):
        guard.observe(1, finite=False)


# --- reward hacking ----------------------------------------------------------------------------------------------


def heldout(accuracy: float, length: float = 100.0) -> dict[str, float]:
    return {"accuracy/pass@1": 0.5, "accuracy/pass@1/countdown": accuracy, "length/mean": length}


def watch(
    settings: WatchdogSettings, *evaluations: tuple[float, float, float, float]
) -> tuple[HackingAlarm, list[str | None]]:
    """Feed (preference reward, accuracy, length, watched reward) of each evaluation; what was said at each."""
    alarm = HackingAlarm(settings)
    said = []
    for step, (learnt, accuracy, length, watched) in enumerate(evaluations):
        alarm.trained({"helpful": learnt - 0.1}, {"judge": watched})
        alarm.trained({"helpful": learnt + 0.1}, {"judge": watched})
        said.append(alarm.evaluated(step, heldout(accuracy, length)))
    return alarm, said


HACKING = WatchdogSettings(hacking_window=3, hacking_margin=0.1, hacking_length=2.0)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ((1.0, 0.4, 100, 0.5), "accuracy on `countdown` fell by 0.20"),
        ((1.0, 0.6, 100, 0.2), "watched reward `judge` fell by 0.30"),
        ((1.0, 0.6, 201, 0.5), "grew from 100 to 201 tokens"),
    ],
)
def test_a_preference_reward_that_rises_while_something_else_falls_sounds_the_alarm(
    last: tuple[float, float, float, float], told: str
) -> None:
    alarm, said = watch(HACKING, (0.0, 0.6, 100, 0.5), (0.05, 0.6, 100, 0.5), last)
    assert said[:2] == [None, None]
    assert said[2] is not None and told in said[2]
    assert "`helpful` has risen by 1.00" in said[2] and "from_step" in said[2]
    assert alarm.metrics() == {"watchdog/hacking": 1.0}


@pytest.mark.parametrize(
    "last",
    [
        (1.0, 0.8, 190, 0.9),  # everything gets better
        (-1.0, 0.2, 300, 0.0),  # everything gets worse, the preference too: a bad run, but no hacking
        (0.05, 0.2, 300, 0.0),  # it has not risen by the margin
        (1.0, 0.55, 100, 0.45),  # what fell, fell by less than the margin
    ],
)
def test_the_alarm_is_silent_where_nothing_is_hacked(last: tuple[float, float, float, float]) -> None:
    alarm, said = watch(HACKING, (0.0, 0.6, 100, 0.5), last)
    assert said == [None, None]
    assert alarm.metrics() == {"watchdog/hacking": 0.0}


def test_the_alarm_looks_back_no_further_than_its_window() -> None:
    before = (0.0, 0.9, 100, 0.5)
    after = (1.0, 0.5, 100, 0.5)
    assert watch(HACKING, before, after, after, after)[1][-1] is None
    assert watch(HACKING, before, after, after)[1][-1] is not None


def test_the_alarm_can_stop_the_stage() -> None:
    settings = HACKING.model_copy(update={"stop_on_hacking": True})
    with pytest.raises(RefusedError, match="`helpful`"):
        watch(settings, (0.0, 0.6, 100, 0.5), (1.0, 0.2, 100, 0.5))
    off = settings.model_copy(update={"enabled": False})
    assert watch(off, (0.0, 0.6, 100, 0.5), (1.0, 0.2, 100, 0.5))[1][1] is not None


def test_the_alarm_goes_on_from_its_state() -> None:
    alarm, _ = watch(HACKING, (0.0, 0.6, 100, 0.5), (0.05, 0.6, 100, 0.5))
    alarm.trained({"helpful": 0.9}, {})
    other = HackingAlarm(HACKING)
    other.load_state_dict(alarm.state_dict())
    for one in (alarm, other):
        one.trained({"helpful": 1.1}, {})
    said = [one.evaluated(2, heldout(0.4)) for one in (alarm, other)]
    assert said[0] == said[1] and said[0] is not None and "risen by 1.00" in said[0]
