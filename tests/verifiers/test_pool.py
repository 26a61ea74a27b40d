"""Worker processes: results, deadlines, deaths, a fresh process after each, and none that is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ponder.errors import PonderError, RefusedError
from ponder.verifiers.pool import DeadlineExceededError, KillableWorker, Lost, WorkerPool


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
    first = worker.call(cpu_s=5, deadline_s=120)
    assert first != os.getpid()
    assert worker.call(cpu_s=5, deadline_s=120) == first
    worker.close()
    assert worker.call(cpu_s=5, deadline_s=120) != first


def test_arguments_and_results_travel_unchanged(make_worker):
    worker = make_worker("operator:concat")
    assert worker.call("a\n\x00é中", "\ud800", cpu_s=5, deadline_s=120) == "a\n\x00é中\ud800"
    assert worker.call([1, None], [{"a": 2.5}], cpu_s=5, deadline_s=120) == [1, None, {"a": 2.5}]


def test_a_call_that_does_not_end_is_killed_at_its_deadline(make_worker):
    worker = make_worker("time:sleep")
    worker.call(0, cpu_s=5, deadline_s=120)
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        worker.call(10_000, cpu_s=5, deadline_s=0.3)
    assert time.monotonic() - start >= 0.3
    assert worker.call(0, cpu_s=5, deadline_s=120) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer of processor time")
def test_processor_time_is_limited_apart_from_the_clock(make_worker):
    worker = make_worker("builtins:pow")
    assert worker.call(3, 4, cpu_s=0.2, deadline_s=60) == 81
    with pytest.raises(DeadlineExceededError, match=r"0\.2 s of processor time"):
        worker.call(3, 10**9, cpu_s=0.2, deadline_s=3600)


def test_a_late_result_never_answers_the_next_question(make_worker):
    worker = make_worker("time:sleep")
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            worker.call(0.5, cpu_s=5, deadline_s=0.3)
    assert worker.call(0, cpu_s=5, deadline_s=120) is None


@pytest.mark.parametrize("function", ["operator:truediv", "os:_exit"])
def test_a_worker_that_dies_is_replaced(make_worker, function):
    worker = make_worker(function)
    arguments = (1, 0) if function == "operator:truediv" else (3,)
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            worker.call(*arguments, cpu_s=5, deadline_s=3600)  # a death is noticed at once


def test_what_a_function_prints_is_no_result(make_worker):
    assert make_worker("builtins:print").call("true", cpu_s=5, deadline_s=120) is None


def test_a_function_that_does_not_exist_is_one_sentence(make_worker):
    with pytest.raises(PonderError, match="no_such_module:f does not start"):
        make_worker("no_such_module:f").call(cpu_s=5, deadline_s=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a process's memory")
def test_memory_is_limited(make_worker):
    worker = make_worker("builtins:bytearray")
    with pytest.raises(DeadlineExceededError):
        worker.call(2**40, cpu_s=5, deadline_s=30)


# --- the pool ------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_pool():
    pools = []

    def make(function="builtins:eval", workers=1, cpu_s=5.0, deadline_s=60.0):
        pools.append(WorkerPool(function, workers, cpu_s, deadline_s))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


PID = "__import__('os').getpid()"


def results(pool, *expressions):
    return [future.result(300) for future in [pool.submit(expression) for expression in expressions]]


def test_results_come_in_the_order_of_the_calls(make_pool):
    assert results(make_pool(workers=2), *map(str, range(1000))) == list(range(1000))


def test_both_workers_work(make_pool):
    assert len(set(results(make_pool(workers=2), *[f"({PID}, __import__('time').sleep(0.05))[0]"] * 20))) == 2


def test_a_dataclass_comes_back_as_its_fields(make_pool):
    verdict = make_pool("ponder.verifiers.base:Verdict").submit(True, "\x007\ud800", "so")
    assert verdict.result() == {"correct": True, "extracted": "\x007\ud800", "why": "so", "status": "judged"}


def test_an_exception_is_the_outcome_of_its_call_only(make_pool):
    before, zero, shown, after = results(make_pool(), PID, "1 / 0", "object()", PID)
    assert zero == Lost("crashed", "ZeroDivisionError: division by zero")
    assert shown.how == "crashed"  # no JSON
    assert before == after


def test_a_refusal_is_handed_on(make_pool):
    future = make_pool("test_pool:refuse").submit("no sandbox works here")
    with pytest.raises(RefusedError, match=r"^no sandbox works here$"):
        future.result()


def refuse(why):
    raise RefusedError(why)


def test_a_call_that_kills_its_worker_is_counted_and_the_others_go_on(make_pool):
    others = [str(number) for number in range(40)]
    found = results(make_pool(), *others, "__import__('os')._exit(3)", *others)
    assert found.pop(40) == Lost("crashed", "its process ends with exit code 3")
    assert found == list(range(40)) * 2


def test_a_worker_that_is_killed_from_outside_costs_nobody_a_verdict(make_pool):
    pool = make_pool()
    (worker,) = results(pool, PID)
    sleeping, other = pool.submit(f"__import__('time').sleep(3600 if {PID} == {worker} else 0)"), pool.submit(PID)
    os.kill(worker, signal.SIGKILL)
    assert sleeping.result() is None
    assert other.result() != worker


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer of processor time")
def test_a_call_that_computes_for_ever_is_ended_by_its_processor_time(make_pool):
    hung, other = results(make_pool(cpu_s=0.2, deadline_s=300), "3 ** 10**9", "3 ** 4")
    assert hung == Lost("timeout", "it takes more than 0.2 s of processor time")
    assert other == 81


def test_a_call_that_sleeps_for_ever_is_ended_by_the_clock_while_others_are_judged(make_pool):
    pool = make_pool(workers=2, deadline_s=2.0)
    both: set[int] = set()
    while len(both) < 2:  # they are ready
        both.update(results(pool, *[f"({PID}, __import__('time').sleep(0.05))[0]"] * 4))
    hung = pool.submit("__import__('time').sleep(1000)")
    assert results(pool, *map(str, range(100))) == list(range(100))
    assert not hung.done()
    assert hung.result() == Lost("timeout", "it takes more than 2 s on the clock")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a process's memory")
def test_a_call_that_takes_too_much_memory_crashes(make_pool):
    (lost,) = results(make_pool(), "bytearray(2 ** 40)")
    assert lost.how == "crashed"
    assert "MemoryError" in lost.why


def test_a_function_cannot_reach_the_pipes_to_its_parent(make_pool):
    answer = '{"kind": "result", "value": 1}'
    assert results(make_pool(), f"print({answer!r})", f"__import__('os').system({f'echo {answer!r}; cat'!r})") == [
        None,
        0,
    ]


def test_workers_import_nothing_heavy(make_pool):
    heavy = "sorted({'torch', 'sympy', 'transformers', 'pyarrow'} & {*__import__('sys').modules})"
    assert results(make_pool(), "__import__('ponder.tasks') and None", heavy) == [None, []]


def test_a_pool_whose_workers_do_not_start_says_so(make_pool):
    with pytest.raises(PonderError, match="no_such_module:f does not start"):
        results(make_pool("no_such_module:f"), "1")


def test_a_closed_pool_ends_its_workers(make_pool):
    pool = make_pool()
    (worker,) = results(pool, PID)
    pool.close()
    assert until(lambda: not is_running(worker))


ORPHANS = """
import signal
import time
from ponder.verifiers.pool import KillableWorker, WorkerPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told this to ignore it

pool, single = WorkerPool("builtins:eval", 2, cpu_s=60, deadline_s=600), KillableWorker("os:getpid")
pids = pool.submit("__import__('os').getpid()").result(), single.call(cpu_s=60, deadline_s=600)
print(*pids, flush=True)
for _ in range(2):
    pool.submit("__import__('time').sleep(1000)")
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(signal_number):
    """Neither an idle one nor one in the middle of a call that hangs."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        parent.send_signal(signal_number)
        assert until(lambda: not any(map(is_running, workers)))


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # one that has ended, and that nobody has waited for yet, counts as ended
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it has just ended, unless there is no /proc
        return not Path("/proc/self").exists()


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_cheap_calls_travel_together_unless_somebody_waits(make_pool, monkeypatch):
    monkeypatch.setattr("ponder.verifiers.pool.LINGER_S", 600.0)
    monkeypatch.setattr("ponder.verifiers.pool.CHUNK_S", 600.0)  # on a busy machine, too, these calls are cheap
    pool = make_pool()
    assert pool.submit("1").result(300) == 1  # the first one goes at once
    # from now on it pays to wait for a second one
    alone = pool.submit("4")
    with pytest.raises(TimeoutError):
        alone.result(0.2)
    pool.hurry()
    assert alone.result(300) == 4
