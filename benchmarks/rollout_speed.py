"""Rollout speed: tokens a second of Ponder's engine beside transformers' generate and vLLM on CPU.

    python benchmarks/rollout_speed.py --model mini
    python benchmarks/rollout_speed.py --model smollm2-135m --repeats 3

All sides read the same Hugging Face folder and complete the same prompts: a batch of 64 sequences (8 prompts, 8 samples
each), 128 new tokens a sequence, none shorter; float32, temperature 1, whole vocabulary, the same number of threads.
What differs is in Ponder's disfavour: its engine also returns the log-probability of every sampled token, the peers
are not asked for it. vLLM runs eagerly, with its scheduler in the same process, and shares prompts (prefix caching).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import Turns, add_common_arguments, as_json, play, ratios, save, table
from models import MODELS, PEERS_PYTHON, VLLM_PYTHON, BenchmarkModel, own_python, prepared


def ponder_side(options: argparse.Namespace, turns: Turns) -> None:
    import torch

    from ponder.rollout.base import Request, Sampling
    from ponder.rollout.native import NativeEngine

    torch.set_num_threads(options.threads)
    model = BenchmarkModel(options.model)
    engine = NativeEngine(model.decoder(), max_rows=options.batch)
    sampling = Sampling(max_tokens=options.tokens)
    requests = [Request(ids, str(i), options.group) for i, ids in enumerate(model.prompt_ids(prompts_of(options)))]
    turns.ready()
    for turn in turns:
        completions = engine.generate(requests, sampling, seed=turn)
        assert all(len(c.ids) == options.tokens for group in completions for c in group)


def transformers_side(options: argparse.Namespace, turns: Turns) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    model = BenchmarkModel(options.model)
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None  # no completion ends early
    ids, mask = model.padded_prompts(prompts_of(options), options.group)
    turns.ready()
    for _ in turns:
        out = network.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=options.tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )
        assert out.shape == (options.batch, len(ids[0]) + options.tokens)


def vllm_side(options: argparse.Namespace, turns: Turns) -> None:
    import os

    # in process and unbound, so that its threads are as many as, and lie where, those of the others do
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    import torch
    from vllm import LLM, SamplingParams

    model = BenchmarkModel(options.model)
    prompts = model.prompt_ids(prompts_of(options))
    engine = LLM(
        model=str(model.folder),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_num_seqs=options.batch,
        max_model_len=max(map(len, prompts)) + options.tokens,
        disable_log_stats=True,
    )
    torch.set_num_threads(options.threads)
    sampling = SamplingParams(
        n=options.group, temperature=1.0, max_tokens=options.tokens, ignore_eos=True, detokenize=False
    )
    turns.ready()
    for _ in turns:
        outputs = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], sampling, use_tqdm=False)
        assert all(len(c.token_ids) == options.tokens for output in outputs for c in output.outputs)


def prompts_of(options: argparse.Namespace) -> int:
    """The number of different prompts."""
    return int(options.batch // options.group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--batch", type=int, default=64, help="sequences at once (default: 64)")
    parser.add_argument("--group", type=int, default=8, help="samples a prompt (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a sequence (default: 128)")
    parser.add_argument("--peer-python", default=PEERS_PYTHON, help="Python that has transformers")
    parser.add_argument("--vllm-python", default=VLLM_PYTHON, help="Python that has vllm")
    add_common_arguments(parser, repeats=5)
    options = parser.parse_args()
    if options.batch % options.group:
        parser.error("--batch must be a multiple of --group")
    if not options.side:
        prepared(options.model)
    results = play(
        options,
        Path(__file__),
        {
            "ponder": (ponder_side, own_python()),
            "transformers": (transformers_side, options.peer_python),
            "vllm": (vllm_side, options.vllm_python),
        },
    )
    if results is None:
        return
    tokens = options.batch * options.tokens
    against = ratios(results, "seconds")
    rows = []
    for name, result in results.items():
        faster = against.get(name)
        rows.append(
            [
                name,
                f"{tokens / result.median('seconds'):.0f}",
                f"{tokens / result.median('cpu_seconds'):.0f}",
                f"{result.median('peak_mib'):.0f}",
                f"{faster['of_medians']:.2f} ({faster['smallest']:.2f}-{faster['largest']:.2f})" if faster else "",
            ]
        )
    print(f"{options.model}: {options.batch} x {options.tokens} new tokens, {options.threads} threads, medians")
    print(table(["engine", "tokens/s", "tokens/CPU s", "peak MiB", "Ponder is faster by"], rows))
    save(f"rollout_speed-{options.model}", options.json, options, {"results": as_json(results), "speed_up": against})


if __name__ == "__main__":
    main()
