"""Record the lengths, rewards and dead groups of one step of a real run, for `grpo_step.py --lengths real`.

    python benchmarks/record_step.py runs/r1-zero-mini --step 60

Writes real_step.json: for each group of the step the reply lengths as shares of the limit, and the total rewards.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

from grpo_step import REAL_STEP


def main() -> None:
    from ponder.recipe import ReinforceStage
    from ponder.run import RunFolder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--stage", default="zero")
    parser.add_argument("--step", type=int, required=True)
    options = parser.parse_args()

    run = RunFolder.open(options.run)
    stage = run.recipe().stages[options.stage]
    assert isinstance(stage, ReinforceStage), f"{options.stage} is no reinforce stage"
    weights = {name: settings.weight for name, settings in stage.rewards.items()}
    rows = run.rollouts().iter_rollouts(options.stage, options.step, split="train")
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.problem_id)]
    record = {
        "recipe": run.recipe().name,
        "step": options.step,
        "length_shares": [[round(row.length / stage.sampling.max_tokens, 4) for row in group] for group in groups],
        "rewards": [[sum(weights[n] * row.rewards[n] for n in weights) for row in group] for group in groups],
    }
    REAL_STEP.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(f"{sum(map(len, groups))} replies in {len(groups)} groups: {REAL_STEP}")


if __name__ == "__main__":
    main()
