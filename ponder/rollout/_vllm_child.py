"""The process that holds vLLM. It runs in vLLM's environment, where there is no Ponder: standard library and vLLM only.

    python _vllm_child.py FILE_DESCRIPTOR

The descriptor is a connected socket. The first message says how to start the engine; then requests and weights come
in, and completions go out. The engine's loop is run here, one token at a time, so that new weights come between two
tokens, and each token knows the version that it was sampled under. `ponder.rollout.vllm` is the other end.

    in     {"start": {...}}   {"add": {...}}   {"load": {"version", "path"}}   {"close": true}
    out    {"started": {...}}   {"finished": [...]}   {"loaded": version}   {"working": steps}   {"failed": why}
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGN_OF_LIFE_S = 1.0
"""A process that has work says at least so often that it is at it (between two tokens)."""

MAX_LOG_BYTES = 1 << 20
"""The log is emptied where it has grown beyond this: only its end is ever read."""

CPU_CACHE_BYTES = 2 << 30
"""Most bytes of keys and values on a CPU, unless the settings say otherwise; a GPU is shared out by `memory_share`."""

CPU_BATCH_TOKENS = 4096
"""Tokens of prompts in one step on a CPU."""

CPU_SEQUENCES = 256
"""Sequences at once on a CPU, as many as vLLM takes on most GPUs."""

_PR_SET_PDEATHSIG = 1

Message = dict[str, Any]


class Channel:
    """Messages over a stream socket: four bytes of length, most significant first, then JSON."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._unread = bytearray()

    def send(self, message: Message, timeout: float | None = None) -> None:
        """Raises `OSError` when the other end is gone, or takes nothing for `timeout` seconds."""
        data = json.dumps(message, separators=(",", ":")).encode()
        self._socket.settimeout(timeout)
        self._socket.sendall(len(data).to_bytes(4, "big") + data)

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, or None when none is complete within `timeout` seconds.

        Raises `EOFError` when the other end is gone, `ValueError` when what it said is no message.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (data := self._next()) is None:
            self._socket.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
            try:
                part = self._socket.recv(1 << 20)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise EOFError(str(error)) from error
            if not part:
                raise EOFError("the other end has closed the connection")
            self._unread += part
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("a message must be an object")
        return message

    def close(self) -> None:
        self._socket.close()

    def _next(self) -> bytes | None:
        """The bytes of the first message among the unread ones, once it is whole."""
        end = 4 + int.from_bytes(self._unread[:4], "big")
        if len(self._unread) < end:  # also where the length itself is not whole
            return None
        data = bytes(self._unread[4:end])
        del self._unread[:end]
        return data


class WeightsReader:
    """Joins vLLM's worker class (`worker_extension_cls`), on every rank of a tensor-parallel group."""

    def read_weights(self, path: str) -> None:
        """Take the weights of a safetensors file, under their Hugging Face names, in place of the present ones."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors: Iterator[tuple[str, Any]] = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            # not the model's own load_weights: on a CPU, layers compute from packed copies, which a reload makes anew
            self.reload_weights(weights_iterator=tensors)  # type: ignore[attr-defined]
        self._pack_tied_head()

    def _pack_tied_head(self) -> None:
        """A head that is tied to the embedding has no tensor of its own, so the reload leaves its packed copy as it was
        (vLLM 0.32)."""
        from vllm.platforms import current_platform

        model: Any = self.model_runner.get_model()  # type: ignore[attr-defined]
        if current_platform.is_cpu() and self.model_config.hf_config.tie_word_embeddings:  # type: ignore[attr-defined]
            head = model.lm_head.tie_weights(model.model.embed_tokens)
            head.quant_method.process_weights_after_loading(head)


@dataclass
class _Rollout:
    """One sample of a request."""

    request: int
    sample: int
    prompt: list[int]
    params: Any
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)


class Rollouts:
    """The rollouts that are waiting or under way, over vLLM's engine."""

    def __init__(self, engine: Any, sampling_params: Any, version: int) -> None:
        self._engine = engine
        self._params = sampling_params
        self._version = version
        self._waiting: deque[_Rollout] = deque()
        self._live: dict[str, _Rollout] = {}
        self._room = engine.vllm_config.scheduler_config.max_num_seqs

    @property
    def idle(self) -> bool:
        return not self._live and not self._waiting

    def add(self, first: int, requests: list[Message], sampling: Message) -> None:
        """Take requests, the first of which has this number."""
        for number, request in enumerate(requests, start=first):
            for sample, seed in enumerate(request["seeds"]):
                params = self._params(seed=seed, **sampling)
                self._waiting.append(_Rollout(number, sample, request["prompt"], params))

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def load(self, version: int, path: str) -> None:
        """Sample from now on under the weights of this file."""
        self._engine.collective_rpc("read_weights", args=(path,))
        self._version = version

    def step(self) -> list[Message]:
        """One token more for each rollout under way; returns those that ended."""
        self._feed()
        finished = []
        for output in self._engine.step():
            rollout = self._live[output.request_id]
            (new,) = output.outputs
            self._take(rollout, new)
            if output.finished:
                del self._live[output.request_id]
                finished.append(
                    {
                        "request": rollout.request,
                        "sample": rollout.sample,
                        "ids": rollout.ids,
                        "logprobs": rollout.logprobs,
                        "reason": new.finish_reason,
                        "versions": rollout.versions,
                    }
                )
        return finished

    def _feed(self) -> None:
        """vLLM shares the prompts of rollouts that have the same salt. Those that begin under new weights must not have
        the keys and values of the old, so the salt is the version, and no rollout waits inside vLLM for its turn."""
        while self._waiting and len(self._live) < self._room:
            rollout = self._waiting.popleft()
            prompt = {"type": "token", "prompt_token_ids": rollout.prompt, "cache_salt": str(self._version)}
            name = f"{rollout.request}.{rollout.sample}"
            self._live[name] = rollout
            self._engine.add_request(name, prompt, rollout.params)

    def _take(self, rollout: _Rollout, new: Any) -> None:
        if new.token_ids and (not rollout.versions or rollout.versions[-1][1] != self._version):
            rollout.versions.append((len(rollout.ids), self._version))
        rollout.ids.extend(new.token_ids)
        if rollout.params.logprobs is not None:
            rollout.logprobs.extend(at[token].logprob for token, at in zip(new.token_ids, new.logprobs, strict=True))


def serve(channel: Channel, inbox: queue.SimpleQueue[Message], rollouts: Rollouts) -> None:
    """Work until told to close: messages first, then a token for each rollout."""
    steps, said = 0, time.monotonic()
    while True:
        while not inbox.empty() or rollouts.idle:
            message = inbox.get()
            if "close" in message:
                return
            if "add" in message:
                rollouts.add(**message["add"])
            if "load" in message:
                rollouts.load(**message["load"])
                channel.send({"loaded": message["load"]["version"]})
        finished = rollouts.step()
        steps += 1
        if finished:
            channel.send({"finished": finished})
        elif time.monotonic() - said >= SIGN_OF_LIFE_S:
            channel.send({"working": steps})
            _shorten_log()
        else:
            continue
        said = time.monotonic()


def _shorten_log() -> None:
    if os.fstat(sys.stderr.fileno()).st_size > MAX_LOG_BYTES:
        os.ftruncate(sys.stderr.fileno(), 0)


def start_engine(
    threads: int, arguments: Message, options: Message, bytes_per_token: int, version: int
) -> tuple[Rollouts, Message]:
    """Load vLLM and the model; also returns what there is to say of them.

    `arguments` are Ponder's, `options` the user's, which win over what is chosen here for a CPU.
    """
    _set_environment(threads)
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    chosen: Message = {}
    if on_cpu:
        sequence = bytes_per_token * arguments["max_model_len"]
        cache = max(2 * sequence, min(CPU_CACHE_BYTES, CPU_SEQUENCES * sequence))
        chosen = {
            "enforce_eager": True,
            "max_num_seqs": CPU_SEQUENCES,
            "kv_cache_memory_bytes": cache,
            # after a part of a prompt vLLM turns the random stream back, which a CPU's cannot be (0.32, 0.33)
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCH_TOKENS, arguments["max_model_len"]),
        }
    arguments = {**chosen, **options, **arguments}
    if on_cpu and arguments["enforce_eager"]:
        _compile_nothing()
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm import __version__ as vllm_version
    from vllm.sampling_params import RequestOutputKind

    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))

    def sampling_params(**settings: Any) -> Any:
        return SamplingParams(**settings, ignore_eos=True, output_kind=RequestOutputKind.DELTA)

    return Rollouts(engine, sampling_params, version), {"vllm": vllm_version, "device": current_platform.device_type}


def _set_environment(threads: int) -> None:
    """What vLLM asks the environment: the engine in this process, threads as told, nothing sent or fetched."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _compile_nothing() -> None:
    """An eager engine still compiles one small function, which takes ten seconds and a C++ compiler."""
    import torch._dynamo

    torch._dynamo.config.disable = True
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # for the ranks of a tensor-parallel group


def _listen(channel: Channel, inbox: queue.SimpleQueue[Message]) -> None:
    """Pass messages on; where the other end is gone, so is the reason to be."""
    try:
        while True:
            message = channel.receive()
            assert message is not None
            inbox.put(message)
    except (EOFError, ValueError):
        os._exit(1)


def _die_with_parent() -> None:
    # the end of the connection says it too, but not to a process that is stopped
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Start, serve, and say why where that fails."""
    _die_with_parent()
    # this file's folder is not a place to import from: it holds a module named vllm
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), daemon=True).start()
    try:
        rollouts, facts = start_engine(**inbox.get()["start"])
        channel.send({"started": facts})
        serve(channel, inbox, rollouts)
        rollouts.close()
    except Exception as error:
        channel.send({"failed": f"{type(error).__name__}: {error}"})
        raise
    os._exit(0)  # what an interpreter tidies up on its way out takes seconds


if __name__ == "__main__":
    main()
