"""The killable worker: results, deadlines, deaths, and a fresh process after each."""

import os
import sys
import time

import pytest

from ponder.errors import PonderError
from ponder.verifiers.pool import DeadlineExceededError, KillableWorker


@pytest.fixture
def make_worker():
    workers = []

    def make(function):
        workers.append(KillableWorker(function))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_one_process_serves_many_calls(make_worker):
    worker = make_worker("os:getpid")
    first = worker.call(cpu_s=5, deadline_s=10)
    assert first != os.getpid()
    assert worker.call(cpu_s=5, deadline_s=10) == first
    worker.close()
    assert worker.call(cpu_s=5, deadline_s=10) != first


def test_arguments_and_results_travel_unchanged(make_worker):
    worker = make_worker("operator:concat")
    assert worker.call("a\n\x00é中", "\ud800", cpu_s=5, deadline_s=10) == "a\n\x00é中\ud800"
    assert worker.call([1, None], [{"a": 2.5}], cpu_s=5, deadline_s=10) == [1, None, {"a": 2.5}]


def test_a_call_that_does_not_end_is_killed_at_its_deadline(make_worker):
    worker = make_worker("time:sleep")
    worker.call(0, cpu_s=5, deadline_s=10)
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        worker.call(1000, cpu_s=5, deadline_s=0.3)
    assert 0.3 <= time.monotonic() - start < 60
    assert worker.call(0, cpu_s=5, deadline_s=10) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer of processor time")
def test_processor_time_is_limited_apart_from_the_clock(make_worker):
    worker = make_worker("builtins:pow")
    assert worker.call(3, 4, cpu_s=0.2, deadline_s=60) == 81
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        worker.call(3, 10**9, cpu_s=0.2, deadline_s=300)
    assert time.monotonic() - start < 150


def test_a_late_result_never_answers_the_next_question(make_worker):
    worker = make_worker("time:sleep")
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            worker.call(0.5, cpu_s=5, deadline_s=0.3)
    assert worker.call(0, cpu_s=5, deadline_s=10) is None


@pytest.mark.parametrize("function", ["operator:truediv", "os:_exit"])
def test_a_worker_that_dies_is_replaced(make_worker, function):
    worker = make_worker(function)
    arguments = (1, 0) if function == "operator:truediv" else (3,)
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            worker.call(*arguments, cpu_s=5, deadline_s=600)
        assert time.monotonic() - start < 300  # a death is noticed at once


def test_what_a_function_prints_is_no_result(make_worker):
    assert make_worker("builtins:print").call("true", cpu_s=5, deadline_s=10) is None


def test_a_function_that_does_not_exist_is_one_sentence(make_worker):
    with pytest.raises(PonderError, match="no_such_module:f does not start"):
        make_worker("no_such_module:f").call(cpu_s=5, deadline_s=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a process's memory")
def test_memory_is_limited(make_worker):
    worker = make_worker("builtins:bytearray")
    with pytest.raises(DeadlineExceededError):
        worker.call(2**40, cpu_s=5, deadline_s=30)
