"""`reinforce`: GRPO with named rewards on tasks.

    repeat:
        draw problems, sample G completions of each    (Feed, over the backend's engine)
        reward every completion                        (rewards/, by the tasks' verifiers)
        advantage = reward against the rest of its group
        update the policy                              (the backend's trainer)

`Reinforcement.run` is that loop; everything else here serves one of its lines. All that a step does follows from the
weights, the optimizer's state, the feed's cursor and the seed, which is what a checkpoint holds: a killed run goes on
bit for bit as if it had not been. Where it computes is the backend's business (`ponder/cluster/`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor

from ponder.algorithms.advantages import combine_rewards, has_variance
from ponder.algorithms.kl import kl_reward_penalty
from ponder.algorithms.overlong import soft_overlong_penalty
from ponder.cluster.backend import Backend, LocalBackend
from ponder.errors import InterruptedRunError, LostWorkersError
from ponder.evaluation.heldout import engine_sampling, evaluate_problems
from ponder.model.decoder import DTYPES
from ponder.model.folder import save_folder
from ponder.model.load import load_model
from ponder.model.parser import prompt_tail
from ponder.model.reward_model import load_reward_model
from ponder.model.runtime import pick_device
from ponder.recipe import AlgorithmSettings, Recipe, ReinforceStage
from ponder.rewards import RewardContext, RewardModel, applies, score_rollouts
from ponder.rollout.base import PoolEngine
from ponder.run import StageContext
from ponder.stages._feed import Asker, Asynchronous, Feed, OneStepBehind, Synchronous
from ponder.stages._groups import Group, rollout_metrics, update_metrics
from ponder.stages.watchdog import GroupStatistics, HackingAlarm, NonFiniteGuard, Watchdog, preflight
from ponder.tasks import held_out
from ponder.tasks.base import content_hash
from ponder.training.checkpoint import Checkpoints
from ponder.training.packing import Example
from ponder.training.trainer import TrainerSettings
from ponder.training.update import Trajectory, UpdateStatistics


def run_stage(stage: ReinforceStage, context: StageContext) -> None:
    """Train, and leave a Hugging Face folder in the stage's `model/`.

    Raises `RefusedError` when the preflight, or later the watchdog, sees a run that cannot learn,
    `InterruptedRunError` when a cluster loses its workers more often than the recipe allows.
    """
    with ExitStack() as stack:
        Reinforcement(stage, context, stack).run()


class Reinforcement:
    """One stage's loop and what it needs."""

    def __init__(self, stage: ReinforceStage, context: StageContext, stack: ExitStack) -> None:
        """What must be closed is put on `stack`."""
        self.stage = stage
        self.context = context
        self.model = load_model(context.model_source(stage.model))
        self.tokenizer = self.model.tokenizer
        self.algorithm = resolve_algorithm(stage.algorithm, context.recipe)
        self.backend = self._open_backend()
        stack.callback(self.backend.close)
        self.trainer = self.backend.trainer
        self.engine = self.backend.engine
        self.checkpoints = Checkpoints(context.state_dir, context.reporter.warn)
        self.asker = Asker(stage, context, self.tokenizer)
        self.feed = self._open_feed()
        self.reward_models = self._load_reward_models()
        self.held_out = held_out(stage.tasks, stage.evaluation.problems, context.seed) if stage.evaluation.every else []
        self.watchdog = Watchdog(stage.watchdog)
        self.guard = NonFiniteGuard(stage.watchdog)
        self.hacking = HackingAlarm(stage.watchdog)
        self.step = 0
        self.elapsed = 0.0
        self.recoveries = 0
        self.shown: dict[str, float] = {}

    def run(self) -> None:
        resumed = self._resume()
        self.context.reporter.begin(self.stage.steps, done=self.step)
        if not resumed:
            self._preflight()
        lost: LostWorkersError | None = None
        while True:
            try:
                if lost is not None:  # and who else is lost meanwhile
                    self._recover(lost)
                    resumed = self._resume()
                self._run_on(resumed)
                policy = self.backend.policy()
                break
            except LostWorkersError as error:
                lost = error
        save_folder(self.context.model_dir, policy, self.tokenizer, self.model.generation)

    def _run_on(self, resumed: bool) -> None:
        stage, reporter = self.stage, self.context.reporter
        finite = True
        # the loop runs one extra time, so that the last evaluation and the last save need no second copy
        while True:
            if not resumed:  # what a checkpoint holds was evaluated before it was saved
                if self._evaluation_is_due(self.step):
                    self._evaluate()
                if finite and self._checkpoint_is_due(self.step):  # skipped updates leave no good state to go back to
                    self._checkpoint()
            resumed = False
            if self.step == stage.steps:
                break
            if finite:
                self.context.stop_if_requested(self._checkpoint)
            started, self.asker.waited = time.monotonic(), 0.0
            groups = self._sample()
            sampled = time.monotonic()
            self._reward(groups)
            self._advantages(groups)
            rewarded = time.monotonic()
            version, lr = self.trainer.version, self.trainer.lr
            updates = self._update(groups)
            updated = time.monotonic()
            self.step += 1
            times = {
                "rollout": sampled - started - self.asker.waited,
                "reward": rewarded - sampled + self.asker.waited,
                "update": updated - rewarded,
            }
            self._watch(groups)
            self._log(groups, updates, times, {"optimizer/lr": lr} | rollout_metrics(groups, version))
            finite = all(u.finite for u in updates)
            if self.guard.observe(self.step, finite):
                reporter.warn(f"step {self.step}: updates in a row were not finite; back to the last good state")
                resumed = self._resume()

    # --- one line of the box each ----------------------------------------------------------------------------------

    def _sample(self) -> list[Group]:
        """Problems and G completions of each. Groups without variance are drawn anew, where the recipe asks for it."""
        step = self.step + 1
        groups = self.feed.take(step, self._evaluation_is_due(step) or self._checkpoint_is_due(step))
        if not self.algorithm.dynamic_sampling_retries:
            return groups
        feed = cast(Synchronous, self.feed)  # the recipe's schema admits no other
        asked = {content_hash(g.problem) for g in groups}
        for _ in range(self.algorithm.dynamic_sampling_retries):
            self._reward(groups)
            dead = [g for g in groups if not self._has_variance(g)]
            if not dead:
                break
            problems = feed.draw(step, len(dead))
            # a problem that this step has had would bring the same completions
            new = feed.sample(step, [p for p in problems if content_hash(p) not in asked])
            asked |= {content_hash(g.problem) for g in new}
            live = [g for g in groups if self._has_variance(g)]
            groups = live + new + dead[len(new) :]
        return groups

    def _reward(self, groups: Sequence[Group]) -> None:
        """Every named reward of every completion, kept apart; a prompt gets those that are meant for its task."""
        by_task: dict[str, list[Group]] = {}
        for group in groups:
            by_task.setdefault(group.problem.source, []).append(group)
        for task, members in by_task.items():
            wanted = {n: s for n, s in self.stage.rewards.items() if applies(s, task, self.step + 1)}
            contexts = [context for group in members for context in self._reward_contexts(group)]
            scores = score_rollouts(contexts, wanted, self.reward_models)
            size = self.stage.group_size
            for place, group in enumerate(members):
                group.rewards = {name: values[place * size : (place + 1) * size] for name, values in scores.items()}

    def _reward_contexts(self, group: Group) -> list[RewardContext]:
        return [
            RewardContext(
                problem=group.problem,
                text=text,
                split=split,
                num_tokens=len(completion.ids),
                max_tokens=self.stage.sampling.max_tokens,
                finish_reason=completion.finish_reason,
                verdict=verdict,
                step=self.step,
                sample=sample,
                seed=self.context.seed,
                prompt_tail=prompt_tail(group.prompt),
            )
            for sample, (text, split, completion, verdict) in enumerate(
                zip(group.texts, group.splits, group.completions, group.verdicts, strict=True)
            )
        ]

    def _advantages(self, groups: Sequence[Group]) -> None:
        """A_i = (R_i - mean) / std over the group, or as the recipe says [R1 Eq. 3]."""
        algorithm = self.algorithm
        # a reward that a group does not get is the same for all of it, so it gives no advantage
        none = [0.0] * self.stage.group_size
        rewards = {name: torch.tensor([g.rewards.get(name, none) for g in groups]) for name in self.stage.rewards}
        weights = {name: settings.weight for name, settings in self.stage.rewards.items()}
        lengths = torch.tensor([[len(c.ids) for c in g.completions] for g in groups])
        if algorithm.soft_overlong_tokens:
            limit = self.stage.sampling.max_tokens
            rewards["overlong"] = soft_overlong_penalty(lengths, limit, algorithm.soft_overlong_tokens)
            weights["overlong"] = 1.0
        if algorithm.kl.beta > 0 and algorithm.kl.place == "reward":
            rewards["kl"] = -self._kl_penalties(groups)
            weights["kl"] = 1.0
        advantages, total = combine_rewards(rewards, weights, algorithm.reward_aggregate, algorithm.advantage_scale)
        for index, group in enumerate(groups):
            group.advantages = advantages[index].tolist()
            group.total = total[index].tolist()
            for name in rewards.keys() - self.stage.rewards.keys():
                group.rewards[name] = rewards[name][index].tolist()

    def _update(self, groups: Sequence[Group]) -> list[UpdateStatistics]:
        """`updates_per_step` optimizer steps, over whole groups dealt out evenly."""
        kl, count = self.algorithm.kl, self.stage.updates_per_step
        if kl.beta > 0 and kl.refresh_every and self.step and self.step % kl.refresh_every == 0:
            self.trainer.refresh_reference()
        trajectories = [group.trajectories() for group in groups]
        parts = [[t for group in trajectories[part::count] for t in group] for part in range(count)]
        if self.algorithm.importance.mode != "none" and count > 1:
            # a first update is its own old policy; later ones must be told what it was
            parts = [self._with_old_logprobs(part) for part in parts]
        updates = self.trainer.policy_updates(parts)
        for part, update in enumerate(updates):
            _keep_ratios(groups[part::count], update)
        return updates

    def _load_reward_models(self) -> dict[str, RewardModel]:
        models = {name: self._load_reward_model(name) for name in self.stage.reward_models}
        rewards = self.stage.rewards.items()
        return {name: models[settings.model] for name, settings in rewards if settings.model is not None}

    def _load_reward_model(self, name: str) -> RewardModel:
        recipe, folder = self.context.recipe, self.context.model_source(name)
        separate = self.backend.separate(name, folder, recipe.precision)
        if separate is not None:
            return separate
        return load_reward_model(folder, DTYPES[recipe.precision]).to(pick_device(recipe.device))

    # --- what the lines need ---------------------------------------------------------------------------------------

    def _with_old_logprobs(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        logprobs = self.trainer.logprobs(trajectories, "policy")
        return [dataclasses.replace(t, old_logprobs=x.tolist()) for t, x in zip(trajectories, logprobs, strict=True)]

    def _kl_penalties(self, groups: Sequence[Group]) -> Tensor:
        """(P, G): beta times the estimate of KL(policy || reference), summed over each completion."""
        kl = self.algorithm.kl
        examples = [
            Trajectory(Example(g.prompt_ids, tuple(c.ids)), c.logprobs, 0.0) for g in groups for c in g.completions
        ]
        under_reference = self.trainer.logprobs(examples, "reference")
        lengths = torch.tensor([len(r) for r in under_reference])
        penalties = kl_reward_penalty(
            torch.tensor([x for e in examples for x in e.sampler_logprobs]),
            torch.cat(under_reference),
            torch.repeat_interleave(torch.arange(len(examples)), lengths),
            len(examples),
            kl.beta,
            kl.estimator,
        )
        return penalties.view(len(groups), -1)

    def _has_variance(self, group: Group) -> bool:
        return bool(has_variance(torch.tensor([self._weighted(group)])))

    def _weighted(self, group: Group) -> list[float]:
        settings = self.stage.rewards  # what the algorithm adds, such as a length penalty, judges nobody
        parts = [
            [settings[name].weight * x for x in values] for name, values in group.rewards.items() if name in settings
        ]
        return [sum(values) for values in zip(*parts, strict=True)] if parts else [0.0] * self.stage.group_size

    # --- evaluation, logs, watchdog --------------------------------------------------------------------------------

    def _evaluation_is_due(self, step: int) -> bool:
        every = self.stage.evaluation.every
        return bool(every) and (step % every == 0 or step == self.stage.steps)

    def _evaluate(self) -> None:
        settings = self.stage.evaluation
        self.backend.publish()
        result = evaluate_problems(
            self.engine,
            self.tokenizer,
            self.held_out,
            self.stage.template,
            settings.samples,
            engine_sampling(settings.sampling or self.stage.sampling, self.tokenizer),
            seed=self.context.seed,
            judges=self.context.judges,
        )
        self.context.rollouts.add(self.step, result.rows)
        metrics = {f"heldout/{name}": value for name, value in result.metrics.items()}
        costs = {"time/training": self.elapsed, "tokens/sampled": sum(row.length for row in result.rows)}
        self.context.metrics.write(self.step, metrics | costs)
        self.shown = {name: metrics[name] for name in ("heldout/accuracy/pass@1",)}
        alarm = self.hacking.evaluated(self.step, result.metrics)
        if alarm is not None:
            self.context.reporter.warn(alarm)
        low, high = metrics["heldout/accuracy/pass@1_low"], metrics["heldout/accuracy/pass@1_high"]
        self.context.reporter.note(
            f"step {self.step}: held-out pass@1 {metrics['heldout/accuracy/pass@1']:.3f} [{low:.3f}, {high:.3f}], "
            f"cons@{settings.samples} {metrics[f'heldout/accuracy/cons@{settings.samples}']:.3f}, "
            f"length {metrics['heldout/length/mean']:.0f} tokens, {self.elapsed:.0f} s of training"
        )

    def _log(
        self,
        groups: Sequence[Group],
        updates: Sequence[UpdateStatistics],
        times: dict[str, float],
        metrics: dict[str, float],
    ) -> None:
        self.elapsed += sum(times.values())
        metrics |= update_metrics(updates) | self.watchdog.metrics() | self.hacking.metrics() | self.backend.metrics()
        self.hacking.trained(self._means(metrics, learnt=True), self._means(metrics, learnt=False))
        tokens = sum(len(c.ids) for g in groups for c in g.completions)
        metrics |= {f"time/{name}": seconds for name, seconds in times.items()}
        metrics["time/training"] = self.elapsed
        metrics |= {"tokens/sampled": tokens, "tokens/trained": tokens}
        overlap = self.context.recipe.cluster.schedule != "synchronous"
        metrics["speed/rollout_tokens_per_s"] = tokens / (sum(times.values()) if overlap else times["rollout"])
        metrics["speed/train_tokens_per_s"] = tokens / times["update"]
        self.context.rollouts.add(self.step, [row for group in groups for row in group.rows()])
        self.context.metrics.write(self.step, metrics)
        shown = ("accuracy/pass@1", "length/mean", "reward/mean", "groups/dead_share", "reflection/words_per_response")
        self.context.reporter.step(self.step, self.shown | {name: metrics[name] for name in shown})

    def _preflight(self) -> None:
        """A few groups before step 1, sampled and rewarded as in the run, and thrown away."""
        count = self.stage.watchdog.preflight_prompts
        if not count:
            return
        self.backend.publish()
        problems, _ = self.asker.problems(1, self.feed.cursor, count)
        groups = self.asker.generate(self.engine, self.asker.ask(1, problems))
        self._reward(groups)
        preflight([self._statistics(g) for g in groups], self.stage.watchdog, warn=self.context.reporter.warn)

    def _watch(self, groups: Sequence[Group]) -> None:
        for alert in self.watchdog.observe(self.step, [self._statistics(g) for g in groups]):
            self.context.reporter.warn(alert)
        crashes = [v.why for g in groups for v in g.verdicts if v.status == "crashed"]
        if crashes:
            self.context.reporter.warn(f"step {self.step}: {len(crashes)} judgements crashed, as in: {crashes[0]}")

    def _means(self, metrics: dict[str, float], learnt: bool) -> dict[str, float]:
        """This step's mean of the preference rewards that are trained on, or of the rewards that are only watched."""
        return {
            name: metrics[f"reward/{name}"]
            for name, settings in self.stage.rewards.items()
            if f"reward/{name}" in metrics
            and ((settings.model is not None and settings.weight > 0) if learnt else settings.weight == 0)
        }

    def _statistics(self, group: Group) -> GroupStatistics:
        return GroupStatistics(
            rewards=tuple(self._weighted(group)),
            correct=tuple(v.correct for v in group.verdicts),
            well_formed=tuple(s.well_formed for s in group.splits) if "format" in self.stage.rewards else None,
            truncated=tuple(c.finish_reason == "length" for c in group.completions),
        )

    # --- checkpoints and faults ------------------------------------------------------------------------------------

    def _checkpoint_is_due(self, step: int) -> bool:
        """At step 0 too, so that there is always a good state to go back to."""
        return step % self.stage.checkpoint_every == 0 or step == self.stage.steps

    def _checkpoint(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "elapsed": self.elapsed,
            "feed": self.feed.state(),
            "watchdog": self.watchdog.state_dict(),
            "hacking": self.hacking.state_dict(),
        }
        self.checkpoints.save(self.trainer, state)

    def _resume(self) -> bool:
        """Go back to the last checkpoint, if there is one; what was logged after it is dropped and done again."""
        state = self.checkpoints.load(self.trainer)
        if state is not None:
            self.step, self.elapsed = state["step"], state["elapsed"]
            self.feed.load_state(state["feed"])
            self.watchdog.load_state_dict(state["watchdog"])
            self.hacking.load_state_dict(state["hacking"])
        last = self.step if state is not None else -1
        self.context.metrics.rewind(last)
        self.context.rollouts.rewind(last)
        return state is not None

    def _recover(self, error: LostWorkersError) -> None:
        """Start lost workers anew, or give up where that has happened too often."""
        self.recoveries += 1
        if self.recoveries > self.context.recipe.cluster.max_restarts or not self.checkpoints.exist:
            raise InterruptedRunError(str(error)) from error
        self.context.reporter.warn(f"{error}; back to the last checkpoint ({self.recoveries})")
        self.backend.recover()

    # --- where it computes -----------------------------------------------------------------------------------------

    def _open_backend(self) -> Backend:
        recipe, stage = self.context.recipe, self.stage
        settings = TrainerSettings(
            optimizer=stage.optimizer,
            total_steps=stage.steps * stage.updates_per_step,
            budget=stage.tokens_per_micro_batch,
            algorithm=self.algorithm,
            temperature=stage.sampling.temperature,
            max_tokens=stage.sampling.max_tokens,
            lora=stage.lora,
            seed=self.context.seed,
            precision=recipe.precision,
            activation_checkpointing=recipe.activation_checkpointing,
        )
        keep_reference, warn = self.algorithm.kl.beta > 0, self.context.reporter.warn
        if recipe.cluster.kind == "local":
            return LocalBackend(self.model.to(pick_device(recipe.device)), settings, keep_reference, warn)
        from ponder.cluster.ray_backend import RayBackend

        judges = len(stage.reward_models)
        return RayBackend(self.model, settings, recipe.cluster, keep_reference, warn, judges, recipe.device)

    def _open_feed(self) -> Feed:
        cluster, publish = self.context.recipe.cluster, self.backend.publish
        if cluster.schedule == "synchronous":
            return Synchronous(self.asker, self.engine, publish)
        pool = cast(PoolEngine, self.engine)  # the recipe's schema admits no other
        if cluster.schedule == "one_step_behind":
            return OneStepBehind(self.asker, pool, publish)
        return Asynchronous(self.asker, pool, publish, cluster.max_staleness)


def _keep_ratios(groups: Sequence[Group], update: UpdateStatistics) -> None:
    """Write down how far the trainer's probabilities lay from the sampler's, for each token that was trained on."""
    places = [(group, sample) for group in groups for sample in range(len(group.completions))]
    for number, logprobs in update.logprobs.items():
        group, sample = places[number]
        gap = logprobs.double() - torch.tensor(group.completions[sample].logprobs, dtype=torch.float64)
        group.ratios[sample] = gap.exp().tolist()


def resolve_algorithm(algorithm: AlgorithmSettings, recipe: Recipe) -> AlgorithmSettings:
    """The algorithm with `importance.mode` decided: truncated where sampler and trainer differ, as the ratio is taken.

    They differ on a cluster, and in one process in half precision: decoding with a cache and a packed pass round apart.
    """
    if algorithm.importance.mode != "auto":
        return algorithm
    if recipe.cluster.kind == "local" and recipe.precision == "fp32":
        mode = "none"
    else:
        mode = "sequence_truncate" if algorithm.ratio_level == "sequence" else "token_truncate"
    return algorithm.model_copy(update={"importance": algorithm.importance.model_copy(update={"mode": mode})})
