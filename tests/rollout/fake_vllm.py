"""A stand-in for the package vllm, for tests of the process around it: standard library only, tokens by arithmetic.

Token t of a completion is the prompt's last token + t + the number that the model's final norm begins with (0 until
weights are loaded). Its log-probability is -1 - the version that salts the request's share of the prefix cache.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

__version__ = "0.0-fake"


class EngineArgs:
    def __init__(
        self, model: str, trouble: str = "", delay_s: float = 0.0, max_num_seqs: int = 4, **others: Any
    ) -> None:
        if "nonsense" in others:
            raise TypeError("unexpected keyword argument 'nonsense'")
        if not Path(model, "config.json").exists():
            raise ValueError(f"no config.json in {model}")
        self.trouble, self.delay_s, self.max_num_seqs = trouble, delay_s, max_num_seqs


class SamplingParams:
    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


class LLMEngine:
    def __init__(self, args: EngineArgs) -> None:
        self.args = args
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=args.max_num_seqs))
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.requests: dict[str, list[Any]] = {}
        self.shift = 0
        self.do("start")

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        return cls(args)

    def do(self, what: str) -> None:
        """Fail here, if that is the trouble ordered."""
        if self.args.trouble == f"raise in {what}":
            raise RuntimeError(f"out of\nluck in {what}")
        if self.args.trouble == f"exit in {what}":
            os.write(2, b"a library is missing\n")
            os._exit(3)
        if self.args.trouble == f"hang in {what}":
            time.sleep(600)

    def add_request(self, name: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        assert len(self.requests) < self.args.max_num_seqs
        assert params.ignore_eos
        assert 0 <= params.seed < 2**63
        self.requests[name] = [prompt["prompt_token_ids"][-1], 0, int(prompt["cache_salt"]), params]

    def step(self) -> list[Any]:
        self.do("step")
        time.sleep(self.args.delay_s)
        outputs = []
        for name, request in list(self.requests.items()):
            last, length, salt, params = request
            token = last + length + self.shift
            request[1] += 1
            reason = "stop" if token in params.stop_token_ids else "length" if request[1] == params.max_tokens else None
            if reason:
                del self.requests[name]
            logprobs = None if params.logprobs is None else [{token: SimpleNamespace(logprob=-1.0 - salt)}]
            new = SimpleNamespace(token_ids=[token], logprobs=logprobs, finish_reason=reason)
            outputs.append(SimpleNamespace(request_id=name, outputs=[new], finished=reason is not None))
        return outputs

    def collective_rpc(self, method: str, args: tuple[str]) -> None:
        assert method == "read_weights"
        self.do("load")
        data = Path(args[0]).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        start, _ = json.loads(data[8 : 8 + length])["model.norm.weight"]["data_offsets"]
        (first,) = struct.unpack_from("<f", data, 8 + length + start)
        self.shift = int(first)


def _module(name: str, **content: Any) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(content)


_module("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: False, device_type="fake"))
_module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(DELTA="delta"))
