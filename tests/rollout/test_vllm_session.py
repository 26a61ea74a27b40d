"""The session around vLLM's process: what is said over the socket, and what happens when the process fails.

The process is the real one; only the package vllm in it is a stand-in (`fake_vllm.py`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.cluster.processes import is_alive
from ponder.errors import LostWorkersError, UsageError
from ponder.model.folder import load_folder, to_hf_tensors
from ponder.recipe import DeadlineSettings, VllmSettings
from ponder.rollout import _vllm_child
from ponder.rollout._vllm_child import Channel
from ponder.rollout.base import Completion, Request, Sampling, Session
from ponder.rollout.native import run_to_end
from ponder.rollout.vllm import VllmSession, _unnamed_file

Start = Callable[..., VllmSession]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter in whose environment vllm is the stand-in."""
    folder = tmp_path_factory.mktemp("vllm environment")
    (folder / "vllm.py").write_text((Path(__file__).parent / "fake_vllm.py").read_text())
    script = folder / "python"
    # -S: what lies in the environment of the tests is not needed, and would take time
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def start(python: str, tiny_model: Path) -> Generator[Start, None, None]:
    """Starts sessions over the stand-in; what the test leaves open is closed."""
    sessions = []

    def start(options: dict[str, Any] | None = None, deadlines: dict[str, float] | None = None) -> VllmSession:
        settings = VllmSettings(python=python, options=options or {})
        sessions.append(VllmSession(tiny_model, settings, version=5, deadlines=DeadlineSettings(**(deadlines or {}))))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def weights(tiny_model: Path) -> dict[str, torch.Tensor]:
    """The weights of the model, with a final norm that begins with 100."""
    weights = load_folder(tiny_model).decoder.state_dict()
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], 100.0)
    return weights


def pid_of(session: VllmSession) -> int:
    return session._child._process.pid


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def finish(session: Session) -> dict[tuple[int, int], Completion]:
    """What is under way, by number of request and sample."""
    ended = {}
    deadline = time.monotonic() + 300
    while not session.idle:
        ended.update({(request, sample): completion for request, sample, completion in session.step()})
        assert time.monotonic() < deadline
    return ended


def test_completions_come_back_as_they_were_sampled(start: Start) -> None:
    session = start()
    requests = [Request((3, 10), "a", 2), Request((20,), "b")]
    session.add(requests, Sampling(4, stop_ids=(12,)), seed=0)
    (first, second), (third,) = run_to_end(session, requests)
    assert first == second
    assert (first.ids, first.finish_reason, first.versions) == ([10, 11, 12], "stop", [(0, 5)])
    assert first.logprobs == [-6.0] * 3
    assert (third.ids, third.finish_reason) == ([20, 21, 22, 23], "length")
    assert session.facts == {"vllm": "0.0-fake", "device": "fake"}
    assert session.idle
    assert session.step() == []


def test_requests_are_numbered_over_the_session_and_wait_for_room(start: Start) -> None:
    session = start({"max_num_seqs": 2})
    session.add([Request((1,), "a", 3)], Sampling(2), seed=0)
    session.add([Request((2,), "b", 2)], Sampling(3), seed=1)
    assert {place: completion.ids for place, completion in finish(session).items()} == {
        **{(0, sample): [1, 2] for sample in range(3)},
        **{(1, sample): [2, 3, 4] for sample in range(2)},
    }


def test_new_weights_come_between_two_tokens(start: Start, weights: dict[str, torch.Tensor]) -> None:
    session = start({"delay_s": 0.02, "max_num_seqs": 3})
    session.add([Request((1,), "long", 2)], Sampling(100), seed=0)
    session.add([Request((1,), "short")], Sampling(1), seed=0)
    session.add([Request((1,), "in its place")], Sampling(100), seed=0)
    session.add([Request((1,), "waits")], Sampling(5), seed=0)
    while not session.step():  # until the short one has ended, the long ones have begun
        pass
    session.load_weights(6, weights)
    ended = finish(session)
    for sample in (0, 1):
        (_, old), (change, new) = ended[0, sample].versions
        assert (old, new) == (5, 6)
        assert ended[0, sample].ids == [1 + t + 100 * (t >= change) for t in range(100)]
        assert ended[0, sample].logprobs == [-6.0] * 100  # goes on with the keys and values that it has
    assert ended[3, 0].versions == [(0, 6)]
    assert ended[3, 0].logprobs == [-7.0] * 5  # shares no prompt with those of the old weights


def open_weights() -> int:
    """Files of weights that this process holds open."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += "ponder-weights" in str(descriptor.readlink())
    return found


def test_weights_leave_no_file_open(start: Start, weights: dict[str, torch.Tensor]) -> None:
    start().load_weights(6, weights)
    assert open_weights() == 0


def test_what_ended_while_weights_were_loaded_is_not_lost(start: Start, weights: dict[str, torch.Tensor]) -> None:
    session = start()
    session.add([Request((1,), "a")], Sampling(1), seed=0)
    assert select.select([session._child._channel._socket], [], [], 60)[0]  # it has said so
    session.load_weights(6, weights)
    assert not session.idle
    ((request, sample, completion),) = session.step()
    assert (request, sample, completion.ids) == (0, 0, [1])
    assert session.idle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_travel_as_safetensors(dtype: torch.dtype, tiny_model: Path) -> None:
    tensors = to_hf_tensors(load_folder(tiny_model).decoder)
    with _unnamed_file(tensors, dtype) as path:
        found = safetensors.torch.load(Path(path).read_bytes())
        assert open_weights() == 1
        assert safetensors.torch.load_file(path).keys() == tensors.keys()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype))
    assert not Path(path).exists()


def test_under_filters_there_are_no_logprobs(start: Start) -> None:
    session = start()
    for sampling in (Sampling(4, top_p=0.9), Sampling(4, top_k=20)):
        session.add([Request((1,), "a")], sampling, seed=0)
    for completion in finish(session).values():
        assert len(completion.ids) == 4
        assert completion.logprobs == []


def test_it_refuses_what_there_is_no_room_for(start: Start) -> None:
    session = start()
    with pytest.raises(UsageError, match="empty prompt"):
        session.add([Request((), "a")], Sampling(4), seed=0)
    with pytest.raises(UsageError, match=r"sampling\.max_tokens"):
        session.add([Request((1,), "a")], Sampling(512), seed=0)
    assert session.idle
    session.add([Request((1,), "a")], Sampling(2, temperature=0, top_p=0.9, top_k=20), seed=0)  # greedy needs no filter
    finish(session)


def test_it_says_which_interpreter_is_missing(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/python cannot be run .*make vllm.*cluster\.rollout\.vllm\.python"):
        VllmSession(tiny_model, VllmSettings(python="nowhere/python"))


def test_it_says_that_vllm_is_not_in_the_environment(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    with pytest.raises(UsageError, match=r"No module named 'vllm'.*make vllm"):
        VllmSession(tiny_model, VllmSettings(python=str(script)))


def test_it_refuses_models_whose_weights_it_cannot_hand_over(python: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match=r"cluster\.rollout\.engine"):
        VllmSession(tmp_path, VllmSettings(python=python))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ({"logprobs_mode": "raw_logprobs"}, "may not hold 'logprobs_mode'"),
        ({"trouble": "raise in start"}, "RuntimeError: out of luck in start"),
        ({"trouble": "exit in start"}, r"exit code 3\); its last words: a library is missing"),
    ],
)
def test_what_keeps_vllm_from_starting_is_the_users_to_mend(start: Start, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}.*") as caught:
        start(options)
    assert "cluster.rollout.vllm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_start_that_takes_too_long_is_given_up(start: Start) -> None:
    with pytest.raises(LostWorkersError, match=r"not started .* within 0\.5 s \(cluster\.deadlines\.start_s\)"):
        start({"trouble": "hang in start"}, {"start_s": 0.5})


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("raise in step", "RuntimeError: out of luck in step"),
        ("exit in step", r"exit code 3.*a library is missing"),
        ("hang in step", r"silent for \d+ s \(cluster\.deadlines\.silent_s\)"),
    ],
)
def test_a_failure_while_sampling_is_a_lost_worker(start: Start, trouble: str, said: str) -> None:
    session = start({"trouble": trouble}, {"silent_s": 0.6 if "hang" in trouble else 60})
    session.add([Request((1,), "a")], Sampling(5), seed=0)
    with pytest.raises(LostWorkersError, match=said):
        finish(session)
    assert is_gone(pid_of(session))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("raise in load", "RuntimeError: out of luck in load"),
        ("hang in load", r"not loaded the new weights within 0\.5 s \(cluster\.deadlines\.weights_s\)"),
    ],
)
def test_a_failure_while_loading_is_a_lost_worker(
    start: Start, weights: dict[str, torch.Tensor], trouble: str, said: str
) -> None:
    session = start({"trouble": trouble}, {"weights_s": 0.5 if "hang" in trouble else 60})
    with pytest.raises(LostWorkersError, match=said):
        session.load_weights(6, weights)
    assert is_gone(pid_of(session))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_is_noticed(start: Start, number: signal.Signals) -> None:
    session = start({"delay_s": 0.01})
    session.add([Request((1,), "a")], Sampling(500), seed=0)
    session.step()
    os.kill(pid_of(session), number)
    if number == signal.SIGSTOP:
        session._child._silent_s = 0.5
    with pytest.raises(LostWorkersError, match="exit code -9" if number == signal.SIGKILL else "silent"):
        finish(session)
    assert is_gone(pid_of(session))
    with pytest.raises(LostWorkersError):
        session.add([Request((1,), "a")], Sampling(5), seed=0)


def test_steps_may_be_long_as_long_as_there_are_signs_of_life(start: Start) -> None:
    session = start({"delay_s": 0.5}, {"silent_s": 4})
    session.add([Request((1,), "a")], Sampling(10), seed=0)
    finish(session)  # takes 5 s, and says so every second


def test_a_pause_of_the_caller_is_no_silence(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(pauses))
    session = start({"delay_s": 0.01}, {"silent_s": 60})
    session.add([Request((1,), "a")], Sampling(5), seed=0)
    pauses.append(1000)
    finish(session)
    pauses.append(1000)
    session.add([Request((1,), "a")], Sampling(5), seed=0)
    finish(session)


def test_nothing_is_left_of_a_closed_session(start: Start) -> None:
    session = start()
    scratch = Path(session._child._scratch.name)
    assert scratch.stat().st_mode & 0o777 == 0o700
    session.close()
    assert is_gone(pid_of(session))
    assert not scratch.exists()
    session.close()  # a second time does no harm


@pytest.mark.parametrize("stopped", [False, True])
def test_the_process_dies_with_its_parent(python: str, tiny_model: Path, stopped: bool) -> None:
    program = f"""
import importlib.util, socket, subprocess, sys, time
spec = importlib.util.spec_from_file_location("child", {_vllm_child.__file__!r})
child = importlib.util.module_from_spec(spec)
sys.modules["child"] = child
spec.loader.exec_module(child)
ours, theirs = socket.socketpair()
process = subprocess.Popen([{python!r}, child.__file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
theirs.close()
channel = child.Channel(ours)
arguments = {{"model": {str(tiny_model)!r}, "max_model_len": 64}}
channel.send({{"start": dict(threads=1, arguments=arguments, options={{}}, bytes_per_token=1, version=0)}})
assert channel.receive(300) == {{"started": {{"vllm": "0.0-fake", "device": "fake"}}}}
print(process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    assert is_gone(pid)


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text())), st.data())
def test_messages_survive_any_cut(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    encoded = b"".join(len(m).to_bytes(4, "big") + m for m in (json.dumps(m).encode() for m in messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=5)))
    ours, theirs = socket.socketpair()
    channel, found = Channel(theirs), []
    with ours, theirs:
        for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True):
            ours.sendall(encoded[start:end])
            while (message := channel.receive(0)) is not None:
                found.append(message)
        assert found == messages
        ours.close()
        with pytest.raises(EOFError):
            channel.receive(1)


def test_what_is_no_message_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for data in (b"[]", b"{", b"\xff"):
            ours.sendall(len(data).to_bytes(4, "big") + data)
            with pytest.raises(ValueError):
                Channel(theirs).receive(1)
