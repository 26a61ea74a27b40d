"""vLLM as a session: a process of its own, in an environment of its own, at the other end of a socket.

vLLM pins torch and much else, so it is never imported here. `_vllm_child.py` runs under the interpreter that
`cluster.rollout.vllm.python` names, drives vLLM's engine token by token, and is told requests and weights. Weights
travel as safetensors in memory that has no name, so that nothing of them is left, whichever process is killed.

Linux only. vLLM's random streams are its own: a seed gives other tokens than the native engine draws from it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ponder.errors import LostWorkersError, UsageError
from ponder.model.config import DecoderConfig, UnsupportedModelError
from ponder.model.folder import CONFIG, read_object, rename_to_hf
from ponder.recipe import DeadlineSettings, VllmSettings
from ponder.rollout import _vllm_child
from ponder.rollout._vllm_child import Channel, Message
from ponder.rollout.base import Completion, Finished, Request, Sampling, check_room, stream_seed

_MOMENT_S = 0.1
"""Longest that one `step` waits for something to end."""

_CLOSE_S = 10.0
"""vLLM's process has so long to end by itself; so have its ranks, once it is gone."""

_TAIL_CHARS = 300
"""Of what vLLM said last, so much goes into an error."""

_SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

_OWN_ARGUMENTS = frozenset(
    {
        "model",
        "tokenizer",
        "dtype",
        "max_model_len",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "load_format",
        "logprobs_mode",
        "worker_extension_cls",
        "async_scheduling",
        "generation_config",
        "distributed_executor_backend",
    }
)
"""Arguments of vLLM's engine that Ponder chooses or has other settings for; all others are `options`."""


class VllmSession:
    """A `Session` over vLLM, which has started when this returns.

    The weights are those of `model_folder`, a Hugging Face folder, and are named `version`. `max_positions` is the
    longest prompt and completion together (None: as long as the model allows); `threads` are CPU threads. The thread
    that makes a session must live as long as the session: vLLM's process dies with it.

    Every method may raise `LostWorkersError`: vLLM has died, fallen silent or missed a deadline. The session is then
    closed, and nothing of it is left.
    """

    def __init__(
        self,
        model_folder: Path,
        settings: VllmSettings,
        *,
        max_positions: int | None = None,
        dtype: torch.dtype = torch.float32,
        threads: int = 1,
        version: int = 0,
        deadlines: DeadlineSettings | None = None,
    ) -> None:
        """Raises `UsageError` where there is no such interpreter, or vLLM refuses the model or the options."""
        self._config = _supported_config(model_folder)
        self._positions = max_positions or self._config.max_positions
        self._dtype = dtype
        self._deadlines = deadlines or DeadlineSettings()
        self._count = 0
        self._under_way: set[tuple[int, int]] = set()
        self._finished: list[Finished] = []
        arguments = self._arguments(model_folder, settings)
        self._child = _Child(settings.python, self._deadlines.silent_s)
        self.facts: dict[str, Any] = self._start(
            {
                "threads": threads,
                "arguments": arguments,
                "options": settings.options,
                "bytes_per_token": _cache_bytes_per_token(self._config, dtype),
                "version": version,
            }
        )
        """vLLM's version (`vllm`), and what it computes on (`device`)."""

    def add(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> None:
        """See `Session`. Under top-p and top-k completions come without log-probabilities: vLLM has none over the whole
        vocabulary then."""
        check_room(requests, sampling, self._positions)
        described = [
            {
                "prompt": list(request.prompt_ids),
                # of the 128 bits, vLLM takes 63
                "seeds": [stream_seed(seed, request.key, sample) >> 65 for sample in range(request.num_samples)],
            }
            for request in requests
        ]
        self._child.send({"add": {"first": self._count, "requests": described, "sampling": _sampling_params(sampling)}})
        for request in requests:
            self._under_way.update((self._count, sample) for sample in range(request.num_samples))
            self._count += 1

    def step(self) -> list[Finished]:
        """See `Session`: comes back as soon as something has ended, or after a tenth of a second."""
        wait = 0.0 if self._finished or self.idle else _MOMENT_S
        while (message := self._child.receive(wait)) is not None:
            self._take(message)
            wait = 0.0
        finished, self._finished = self._finished, []
        return finished

    @property
    def idle(self) -> bool:
        return not self._under_way and not self._finished

    def load_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """See `Session`. The prompts of rollouts that have not begun are computed under the new weights."""
        with _unnamed_file(rename_to_hf(self._config, weights), self._dtype) as path:
            self._child.send({"load": {"version": version, "path": path}})
            self._await("loaded", self._deadlines.weights_s, "loaded the new weights", "cluster.deadlines.weights_s")

    def close(self) -> None:
        self._child.close()

    def _arguments(self, folder: Path, settings: VllmSettings) -> Message:
        """Arguments of vLLM's engine. Raises `UsageError` where `options` holds one of them."""
        wrong = sorted(_OWN_ARGUMENTS & settings.options.keys())
        if wrong:
            raise UsageError(f"cluster.rollout.vllm.options may not hold {wrong[0]!r}, which Ponder sets: remove it")
        return {
            "model": str(folder.absolute()),
            "dtype": str(self._dtype).removeprefix("torch."),
            "max_model_len": self._positions,
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.memory_share,
            "distributed_executor_backend": "mp" if settings.tensor_parallel > 1 else "uni",
            "worker_extension_cls": "__main__.WeightsReader",
            # pickled weights can run code
            "load_format": "safetensors",
            # of softmax(logits / temperature)
            "logprobs_mode": "processed_logprobs",
            # a step under way while weights change would be counted to the wrong version
            "async_scheduling": False,
            # the model's own sampling settings are not asked for
            "generation_config": "vllm",
        }

    def _start(self, message: Message) -> dict[str, Any]:
        try:
            self._child.send({"start": message})
            facts: dict[str, Any] = self._await(
                "started", self._deadlines.start_s, "started and loaded the model", "cluster.deadlines.start_s"
            )
        except _FailedError as error:
            raise UsageError(
                f"{error}: run `make vllm`, or change cluster.rollout.vllm (python, options, tensor_parallel)"
            ) from error
        return facts

    def _await(self, kind: str, seconds: float, what: str, setting: str) -> Any:
        """What the first message of this kind says; others are dealt with on the way."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self._child.receive(left, silence_counts=False) or {}
            if kind in message:
                return message[kind]
            self._take(message)
        raise self._child.lost(f"has not {what} within {seconds:g} s ({setting})")

    def _take(self, message: Message) -> None:
        for ended in message.get("finished", ()):
            versions = [(first, version) for first, version in ended["versions"]]
            completion = Completion(ended["ids"], ended["logprobs"], ended["reason"], versions)
            self._under_way.remove((ended["request"], ended["sample"]))
            self._finished.append((ended["request"], ended["sample"], completion))


def _supported_config(folder: Path) -> DecoderConfig:
    try:
        return DecoderConfig.from_hf(read_object(folder / CONFIG))
    except UnsupportedModelError as error:
        raise UsageError(
            f"{folder}: {error}, and weights of others cannot be handed to vLLM: set cluster.rollout.engine to native"
        ) from error


def _cache_bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def _sampling_params(sampling: Sampling) -> Message:
    """In vLLM's words. What ends a completion stays in it, and the model's own end token is none unless named."""
    params: Message = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stop_token_ids": list(sampling.stop_ids),
        "detokenize": bool(sampling.stop),
        # 0 is that of the token alone, None is none
        "logprobs": 0,
    }
    if sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k):
        params |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "logprobs": None}
    if sampling.stop:
        params |= {"stop": list(sampling.stop), "include_stop_str_in_output": True, "skip_special_tokens": False}
    return params


@contextmanager
def _unnamed_file(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[str]:
    """Tensors as safetensors in memory, and a path to it for other processes of this user, while this one lives."""
    with open(os.memfd_create("ponder-weights"), "wb") as file:
        _write_safetensors(file, tensors, dtype)
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """The safetensors format: length of the header, header, data. The library's own writers need a name in a folder,
    or a second copy of all weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().data)


class _FailedError(LostWorkersError):
    """vLLM ended by itself and said why; another try will end the same."""


class _Child:
    """vLLM's process, the channel to it, and its log. Whatever raises `LostWorkersError` has ended it."""

    def __init__(self, python: str, silent_s: float) -> None:
        self._silent_s = silent_s
        self._silence = 0.0
        self._ended = False
        self._log = tempfile.TemporaryFile("ab+")
        self._scratch = tempfile.TemporaryDirectory(prefix="ponder-vllm-", ignore_cleanup_errors=True)
        ours, theirs = socket.socketpair()
        interpreter = Path(python).expanduser().absolute()
        # what the parent's environment says of Python holds for the parent's Python
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        environment["TMPDIR"] = self._scratch.name
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [interpreter, _vllm_child.__file__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # an interrupt from the keyboard is for the parent to handle
                )
        except OSError as error:
            ours.close()
            self._log.close()
            self._scratch.cleanup()
            raise UsageError(
                f"{interpreter} cannot be run ({error.strerror}): run `make vllm`, or name the Python of vLLM's "
                f"environment with cluster.rollout.vllm.python"
            ) from error
        self._channel = Channel(ours)

    def send(self, message: Message) -> None:
        self._check_open()
        try:
            self._channel.send(message, timeout=self._silent_s)
        except TimeoutError as error:
            raise self.lost(f"took no message for {self._silent_s:g} s (cluster.deadlines.silent_s)") from error
        except OSError as error:
            raise self._died() from error

    def receive(self, timeout: float, silence_counts: bool = True) -> Message | None:
        """The next message, or None. The time that a caller spends waiting in vain adds up to silence."""
        self._check_open()
        before = time.monotonic()
        try:
            message = self._channel.receive(timeout)
        except (EOFError, ValueError) as error:
            raise self._died() from error
        if message is not None:
            self._silence = 0.0
            if "failed" in message:
                self.close()
                raise _FailedError(f"vLLM failed with {_shortened(message['failed'])}")
        elif silence_counts:
            self._silence += time.monotonic() - before
            if self._silence > self._silent_s:
                raise self.lost(f"has been silent for {self._silence:.0f} s (cluster.deadlines.silent_s)")
        return message

    def lost(self, what: str) -> LostWorkersError:
        """End the process, which is no longer of use; returns what to raise."""
        error = LostWorkersError(f"vLLM {what}; its last words: {self._last_words()}")
        self._end()
        return error

    def close(self) -> None:
        """Let the process end by itself, or end it."""
        if self._ended:
            return
        with suppress(OSError):
            self._channel.send({"close": True}, timeout=1.0)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        self._end()

    def _check_open(self) -> None:
        if self._ended:
            raise LostWorkersError("this session of vLLM is closed: start another")

    def _died(self) -> LostWorkersError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        code = self._process.returncode
        error = self.lost(f"has ended (exit code {code})")
        return _FailedError(str(error)) if code is not None and code > 0 else error

    def _end(self) -> None:
        """Kill the process. Its ranks see that, and end by themselves, leaving no shared memory; or are killed too."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + _CLOSE_S
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._log.close()
        self._scratch.cleanup()
        self._ended = True

    def _last_words(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 10 * _TAIL_CHARS))
        lines = self._log.read().decode(errors="replace").split("\n")
        return _shortened(next((line for line in reversed(lines) if line.strip()), "none"))


def _shortened(text: str) -> str:
    """One line of at most `_TAIL_CHARS` characters, the last."""
    line = " ".join(text.split())
    return line if len(line) <= _TAIL_CHARS else "..." + line[-_TAIL_CHARS:]
