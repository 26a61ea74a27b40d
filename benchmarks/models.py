"""The models and prompts of the benchmarks, as Hugging Face folders that Ponder and its peers read alike.

    python benchmarks/models.py mini smollm2-135m

writes each to benchmarks/models/NAME, by Ponder's own loader and exporter, with the prompts beside it in prompts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, TypedDict

from measure import REPOSITORY

if TYPE_CHECKING:
    from ponder.model.decoder import Decoder

TEMPLATES = {"mini": "mini", "smollm2-135m": "r1-zero"}
MODELS = tuple(TEMPLATES)
PEERS_PYTHON = str(REPOSITORY / ".venv-peers" / "bin" / "python")
VLLM_PYTHON = str(REPOSITORY / ".venv-vllm" / "bin" / "python")
NUM_PROMPTS = 64


class Prompt(TypedDict):
    """An entry of prompts.json."""

    text: str
    ids: list[int]


def own_python() -> str:
    """The Python that runs Ponder's own side: the one that runs the script."""
    return sys.executable


class BenchmarkModel:
    """A prepared folder, as any side sees it."""

    def __init__(self, name: str) -> None:
        self.folder = REPOSITORY / "benchmarks" / "models" / name

    def prompt_texts(self, count: int) -> list[str]:
        """The first `count` prompts."""
        return [prompt["text"] for prompt in self._prompts(count)]

    def prompt_ids(self, count: int) -> list[tuple[int, ...]]:
        """The same as token ids."""
        return [tuple(prompt["ids"]) for prompt in self._prompts(count)]

    def padded_prompts(self, count: int, group: int) -> tuple[list[list[int]], list[list[int]]]:
        """Each prompt `group` times, padded on the left, with its attention mask: what transformers' generate takes."""
        rows = [ids for ids in self.prompt_ids(count) for _ in range(group)]
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return ids, mask

    def decoder(self) -> Decoder:
        """Ponder's decoder with the folder's weights, in float32."""
        from ponder.model.load import load_model

        return load_model(str(self.folder)).decoder

    def _prompts(self, count: int) -> list[Prompt]:
        prompts: list[Prompt] = json.loads((self.folder / "prompts.json").read_text("utf-8"))
        return prompts[:count]


def prepared(name: str) -> None:
    """Write the folder of `name`, in a process of its own: the parent of the sides stays small."""
    subprocess.run([sys.executable, __file__, name], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def _write(name: str) -> None:
    """The model, and countdown problems in the template that fits it."""
    import random

    from ponder.model.folder import save_folder
    from ponder.model.load import load_model
    from ponder.model.templates import render
    from ponder.tasks.countdown import TASK

    model = load_model(name)
    folder = BenchmarkModel(name).folder
    save_folder(folder, model.decoder, model.tokenizer, model.generation)
    rng = random.Random(0)
    problems = [TASK.generate(rng, 1, "en").prompt for _ in range(NUM_PROMPTS)]
    texts = [render(TEMPLATES[name], problem, model.tokenizer) for problem in problems]
    prompts = [{"text": text, "ids": model.tokenizer.encode(text)} for text in texts]
    (folder / "prompts.json").write_text(json.dumps(prompts, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=MODELS)
    for name in parser.parse_args().names:
        _write(name)


if __name__ == "__main__":
    main()
