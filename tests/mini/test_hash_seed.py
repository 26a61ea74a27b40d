"""What Ponder generates is the same in every process: no order may come from a set of texts, which Python shuffles."""

import os
import subprocess
import sys
from pathlib import Path

GENERATE = """
import hashlib
from ponder.curation.preference_data import generate_items
from ponder.mini.world import MiniWorld
from ponder.recipe import TaskSettings, load_recipe
from ponder.tasks import ProblemStream, task_names

made = [generate_items(kind, 1, 300, {}) for kind in ("pairwise", "pointwise")]
recipe = load_recipe("recipes/mini-base.yaml")
stage, *_ = [stage for stage in recipe.stages.values() if getattr(stage, "data", ()) == ("mini-world",)]
world = MiniWorld(1, **{name: value for name, value in stage.data_options.items() if name != "seed"})
made.append([world.document(i) for i in range(300)])
for name in ("arithmetic", "candles", "countdown", "decipher", "general", "parentheses", "safety", "transpose"):
    assert name in task_names()
    stream = ProblemStream({name: TaskSettings(difficulty=1, languages=("en", "zh"))}, "train", 1)
    made.append([stream[i] for i in range(60)])
for part in made:
    print(hashlib.blake2b(repr(part).encode(), digest_size=8).hexdigest())
"""


def generated(hash_seed: int, repository: Path) -> list[str]:
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", GENERATE],
        env=environment,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_nothing_generated_depends_on_the_hash_seed(repository: Path) -> None:
    first = generated(1, repository)
    assert len(set(first)) == 11
    assert generated(2, repository) == first
