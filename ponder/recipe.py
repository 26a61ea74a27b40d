"""The recipe: one place for every setting, its default, its unit and its source in the paper.

A recipe is a YAML file that names stages; each stage is one of the verbs below. Unknown keys are errors that name
the nearest valid key. Settings are overridden on the command line by path: `--set stages.zero.steps=50`.

Sources: [R1] DeepSeek-R1, arXiv 2501.12948v2; [DSM] DeepSeekMath, 2402.03300; [DAPO] 2503.14476;
[Dr] Dr. GRPO, 2503.20783; [GSPO] 2507.18071; [CISPO] MiniMax-M1, 2506.13585; [TIS] truncated importance sampling,
Yao et al. 2025; [GDPO] 2601.05242; [LoRA] 2106.09685; [QLoRA] 2305.14314; [AReaL] 2505.24298; [PipelineRL] 2509.19128.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ponder.errors import BrokenInputError, UsageError

MINI_WORLD = "mini-world"
"""Among `data`: text, or preferences, that Ponder makes up."""


class Settings(BaseModel):
    """Base of every block of a recipe: unknown keys are errors, values never change after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SamplingSettings(Settings):
    """How rollouts are drawn."""

    temperature: float = Field(1.0, ge=0)
    """Softmax temperature; 0 is greedy. 1 in RL [R1 2.1], 0.6 in evaluation [R1 D.1]."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; 0.95 in evaluation [R1 D.1]."""
    top_k: int = Field(0, ge=0)
    """Keep only the k most probable tokens; 0 keeps all."""
    max_tokens: int = Field(512, ge=1)
    """Longest completion, in tokens; 32,768 then 65,536 in [R1 2.1]."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's own end token; they stay in it."""

    @property
    def filtered(self) -> bool:
        """Whether tokens are drawn from less than the whole distribution."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


class TaskSettings(Settings):
    """One source of problems: a generator by name, a reasoning-gym data set, or a file of problems with answers."""

    weight: float = Field(1.0, gt=0)
    """Share of the prompts, relative to the other tasks."""
    difficulty: int | tuple[int, int] = 1
    """The task's dial, or an inclusive range from which it is drawn; 1 is easiest."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the prompts, drawn evenly."""
    path: str | None = None
    """For the tasks `file` and `hub`: a JSONL or Parquet file or a folder of them, or a Hub data set id."""
    problem_field: str = "problem"
    """For file and Hub sets: the column that holds the problem's text."""
    answer_field: str = "answer"
    """For file and Hub sets: the column that holds the reference answer. Empty where there is none: such prompts are
    for reward models, and no part of held-out accuracy."""
    options: dict[str, Any] = {}
    """Passed to the generator as they are (reasoning-gym: `dataset` and its own settings)."""
    from_step: int = Field(1, ge=1)
    """`reinforce` only: first step at which these problems are drawn; general prompts come only in the last 400 of
    1,700 steps in [R1 3.2.2]."""


class ApiSettings(Settings):
    """A model behind an OpenAI-compatible chat-completions API: where it is, and how patient to be with it."""

    base_url: str
    """Root of the API, up to and with `/v1`."""
    model: str
    """Name of the model, as that API knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none. Keys never stand in a recipe."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(3, ge=0)
    """Tries after the first that failed, with growing pauses."""
    concurrency: int = Field(4, ge=1)
    """Requests under way at once."""


class EndpointSettings(ApiSettings):
    """A model behind an API, for rewriting and judging."""

    temperature: float = Field(0.0, ge=0)
    """Softmax temperature of the endpoint's own sampling."""
    max_tokens: int = Field(2048, ge=1)
    """Longest reply of the endpoint, in tokens."""


class EvaluatedEndpoint(ApiSettings):
    """A model behind an API that is evaluated: it is sampled as the stage says, and has time for long thinking."""

    timeout_s: float = Field(1800.0, gt=0)
    """Seconds that one reply may take."""
    retries: int = Field(6, ge=0)
    """Tries after the first that failed, with growing pauses: a minute in all."""
    concurrency: int = Field(8, ge=1)
    """Replies under way at once."""


class KeepSettings(Settings):
    """Which sampled or read examples stay in a data set; the rest is counted by the first rule that it breaks."""

    correct: bool = True
    """Only what the task's rule, or the judge where there is no rule, accepts [R1 2.3.3]."""
    finished: bool = True
    """Only replies that end by themselves and hold one block of thinking and an answer."""
    min_consistency: float = Field(0.0, ge=0, le=1)
    """Smallest share of the thinking's words in the prompt's language; 1 keeps one language only [R1 2.3.3]."""
    max_repeated_share: float = Field(1.0, ge=0, le=1)
    """Largest share of words inside an n-gram that occurred before (repetition detector, [R1 B.3.2])."""
    repeated_ngram: int = Field(20, ge=1)
    """Words of such an n-gram."""
    max_paragraph_chars: int = Field(0, ge=0)
    """Longest paragraph of the thinking, in characters; 0 is no limit. Long paragraphs are dropped in [R1 2.3.3]."""
    code_blocks_in_thinking: bool = True
    """False drops thinking that holds a fenced code block [R1 2.3.3]."""
    max_thinking_words: int = Field(0, ge=0)
    """Longest thinking, in words; 0 is no limit."""
    near_duplicate: float = Field(1.0, gt=0, le=1)
    """Examples whose word 5-grams overlap by this Jaccard similarity or more with one kept before are dropped; 1 drops
    equal ones only."""
    per_problem: int = Field(0, ge=0)
    """Most examples kept of one problem, in order of sampling; 0 is no cap."""


class RewriteSettings(Settings):
    """How kept rollouts take the cold-start shape: readable thinking, then a summary for a person [R1 2.3.1, B.3.2]."""

    by: Literal["mini-world", "endpoint"] = "mini-world"
    """The built-in rewriter of the mini world's traces, or a model behind an endpoint."""
    endpoint: EndpointSettings | None = None
    """Needed where `by` is `endpoint`."""
    instructions: str | None = None
    """Text put to the endpoint in place of the built-in one; holds {prompt}, {thinking}, {answer} and {language}."""

    @model_validator(mode="after")
    def _endpoint_given(self) -> RewriteSettings:
        if (self.by == "endpoint") != (self.endpoint is not None):
            raise ValueError("`endpoint` must be given exactly where `by` is `endpoint`")
        return self


class SourceSettings(Settings):
    """Examples that come from elsewhere, not from the stage's own model."""

    rows: int = Field(0, ge=0)
    """Examples to take; 0 takes all that a file or set holds. A generator needs a number."""
    tasks: dict[str, TaskSettings] = {}
    """For `mini-world`: the tasks whose prompts are answered as a helpful person would."""
    path: str | None = None
    """For `file` and `hub`: a JSONL or Parquet file, a folder of them, or a Hub data set id."""
    folder: str = ""
    """For `hub`: the folder within the set to take; empty takes all. Many sets keep one folder a subset."""
    domain: str = "general"
    """What the examples are about; written into each."""
    language: str = "en"
    """Language of the examples, where they do not say so themselves."""
    messages_field: str = "messages"
    """Column with a list of {role, content}, where there is one; the last assistant turn is the reply."""
    prompt_field: str = "problem"
    """Column with the prompt, where there are no messages."""
    reply_field: str = "solution"
    """Column with the whole reply; thinking and answer are told apart by the one parser."""
    thinking_field: str | None = None
    """Column with the thinking, where it stands apart from the reply."""


class KlSettings(Settings):
    """The Kullback-Leibler term against the reference policy."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL term; 0.001 in [R1 2.1], 0 in [DAPO] and [Dr]. A reference model exists only above 0."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators; R1 prints k3 in the loss [R1 Eq. 2]."""
    place: Literal["loss", "reward"] = "loss"
    """Whether the term is differentiated in the loss [R1 Eq. 1] or subtracted from the reward."""
    refresh_every: int = Field(0, ge=0)
    """Copy the policy into the reference every so many steps; 400 in [R1 2.1], 0 never."""


class ImportanceSettings(Settings):
    """Correction for a sampler whose probabilities differ from the trainer's."""

    mode: Literal["auto", "none", "token_truncate", "sequence_truncate", "token_mask", "sequence_mask"] = "auto"
    """Truncate [TIS] or mask the weights pi_train / pi_sampler, a token or a sequence at a time. `auto` truncates where
    the two differ, by sequence where the ratio is a sequence's, else by token; it does nothing in one fp32 process."""
    cap: float = Field(2.0, gt=0)
    """Upper bound of the weight."""
    floor: float = Field(0.5, ge=0)
    """Lower bound, used by the masking modes only."""


class AlgorithmSettings(Settings):
    """The policy-gradient algorithm. The defaults are GRPO in DeepSeekMath's token form with R1's settings."""

    loss: Literal["grpo", "gspo", "cispo"] = "grpo"
    """Clipped surrogate [R1 Eq. 1], sequence-level ratio [GSPO], or clipped importance weight [CISPO]."""
    ratio: Literal["token", "sequence"] = "token"
    """grpo only: a ratio per token [DSM 4.1] or per whole output, as R1 prints it [R1 Eq. 1]."""
    eps_low: float = Field(0.2, gt=0)
    """Lower clip: ratios below 1 - eps_low are clipped. R1's later stages use 10, which never binds [R1 3.2.1]."""
    eps_high: float = Field(0.2, gt=0)
    """Upper clip, above 1 + eps_high; 0.28 is clip-higher [DAPO]."""
    aggregate: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """Mean per sequence, then over sequences [DSM]; mean over all tokens [DAPO]; sum over max_tokens [Dr]."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Divide centred rewards by the group's deviation [R1 Eq. 3], the batch's, or nothing [Dr]."""
    reward_aggregate: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    """Add the weighted rewards, then normalise [R1 Eq. 4], or normalise each and add [GDPO]."""
    kl: KlSettings = KlSettings()
    importance: ImportanceSettings = ImportanceSettings()
    entropy_bonus: float = 0.0
    """Weight of the mean token entropy added to the objective."""
    mask_truncated: bool = False
    """Completions cut at max_tokens give no gradient (overlong filtering) [DAPO]."""
    soft_overlong_tokens: int = Field(0, ge=0)
    """Linear penalty from 0 to -1 over the last so many tokens before max_tokens [DAPO Eq. 13]; 0 is off."""
    dynamic_sampling_retries: int = Field(0, ge=0)
    """Draw new prompts in place of groups without variance, at most so many times a step [DAPO]; 0 is off."""

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        """What the loss takes the ratio of: `ratio` for grpo; gspo's is a sequence's, cispo's a token's."""
        if self.loss == "grpo":
            return self.ratio
        return "sequence" if self.loss == "gspo" else "token"


class LoraSettings(Settings):
    """Low-rank adapters beside frozen weights [LoRA]; they are merged into the model that the stage leaves."""

    rank: int = Field(16, ge=1)
    """Inner width r of each adapter."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[Literal["qkv", "out", "gate_up", "down"], ...] = Field(
        ("qkv", "out", "gate_up", "down"), min_length=1
    )
    """Matrices of each block that get an adapter."""
    quantise: Literal["none", "nf4"] = "none"
    """How the frozen weights are kept: as they are, or in 4-bit NormalFloat [QLoRA], which needs bitsandbytes."""


class OptimizerSettings(Settings):
    """How weights move."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of the blocks and AdamW for all else."""
    lr: float = Field(3e-6, gt=0)
    """Peak learning rate; 3e-6 for R1-Zero [R1 2.1], about 1e-4 suits models of a few million parameters."""
    muon_lr: float = Field(0.02, gt=0)
    """Peak learning rate of Muon's matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, in optimizer steps."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """After warm-up."""
    final_lr_share: float = Field(0.1, ge=0, le=1)
    """Where cosine and linear end, as a share of `lr`; 0.1 in both SFT stages [R1 B.4.2]."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""


class EvaluationSettings(Settings):
    """Held-out evaluation during a stage."""

    every: int = Field(20, ge=0)
    """Steps between evaluations; one more before the first step and one after the last. 0 is never."""
    problems: int = Field(64, ge=1)
    """Held-out problems, drawn once from the test split and kept."""
    samples: int = Field(16, ge=1)
    """Samples a problem: k of cons@k; 16 in the training curve of [R1 Fig. 1]."""
    sampling: SamplingSettings | None = None
    """None samples as training does."""


class WatchdogSettings(Settings):
    """When a run is refused before it starts, or stopped while it runs."""

    preflight_prompts: int = Field(8, ge=0)
    """Groups sampled before step 1; 0 skips the preflight."""
    max_truncated_share: float = Field(0.9, gt=0, le=1)
    """Refuse when at least this share of completions is cut at max_tokens."""
    patience: int = Field(10, ge=1)
    """Steps in a row that a rule must be broken before a running stage is stopped."""
    max_skipped_steps: int = Field(3, ge=1)
    """Non-finite updates in a row before the run goes back to its last good state."""
    enabled: bool = True
    """False logs what it sees and refuses nothing (for control runs that are meant to learn nothing)."""
    hacking_window: int = Field(3, ge=2)
    """Held-out evaluations looked back on for reward hacking: a preference reward that has risen since the first of
    them while a task's accuracy or a watched reward (weight 0) has fallen, or the length has run away."""
    hacking_margin: float = Field(0.1, gt=0)
    """How far, as a share of 1 for accuracy and in the reward's own unit for rewards, before the alarm."""
    hacking_length: float = Field(2.0, gt=1)
    """Growth of the mean length, as a factor, that counts as running away."""
    stop_on_hacking: bool = False
    """True stops the stage at the alarm; False warns and goes on."""


def _reward_in_short(value: Any) -> Any:
    """A number stands for a weight, a text for a reward model."""
    if isinstance(value, (int, float)):
        return {"weight": value}
    return {"model": value} if isinstance(value, str) else value


class RewardSettings(Settings):
    """One named reward."""

    weight: float = 1.0
    """Factor before aggregation; 0 watches a reward without training on it."""
    options: dict[str, Any] = {}
    """Passed to the reward's function as keyword arguments."""
    model: str | None = None
    """A reward model: a `train_reward` stage's name or its folder. The reward is its score, under any name."""
    tasks: tuple[str, ...] = ()
    """Tasks (as named in the stage) whose prompts get this reward; none named is all of them."""
    from_step: int = Field(1, ge=1)
    """First step at which it counts; preference rewards only in the last 400 of 1,700 steps in [R1 3.2.2]."""


class ReinforceStage(Settings):
    """`reinforce`: GRPO with named rewards on tasks."""

    verb: Literal["reinforce"]
    model: str = "mini"
    """Another stage's name, an embedded name (`mini`), a folder, a GGUF file, or a Hub id."""
    template: str = "r1-zero"
    """Prompt template: a name from ponder/model/templates.py, `chat` for the model's own, or a text with {prompt}."""
    tasks: dict[str, TaskSettings]
    """Sources of problems by task name."""
    rewards: dict[str, RewardSettings] = {"accuracy": RewardSettings(), "format": RewardSettings()}
    """Named rewards; a number stands for a weight, a text for a reward model. R1-Zero: accuracy + format, equal weight
    [R1 Eq. 4]; R1's last stage: rules, reward models and language [R1 Eq. 8-10]."""
    steps: int = Field(100, ge=1)
    """Rollout-and-update rounds; 10,400 policy updates in [R1 2.1]."""
    prompts_per_step: int = Field(32, ge=1)
    """Different problems a step; 32 in [R1 2.1]."""
    group_size: int = Field(16, ge=2)
    """G, samples a problem; 16 in [R1 2.1]."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer steps a rollout batch (whole groups are dealt out evenly); 16 in [R1 2.1]."""
    sampling: SamplingSettings = SamplingSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings | None = None
    """Train adapters only; None trains every weight, as R1 did."""
    evaluation: EvaluationSettings = EvaluationSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    tokens_per_micro_batch: int = Field(8192, ge=64)
    """Packing budget of one forward and backward pass, in tokens: lower it when memory is short."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between states from which an exact resume is possible."""

    @property
    def reward_models(self) -> tuple[str, ...]:
        """The reward models behind the rewards, each once."""
        return tuple(dict.fromkeys(reward.model for reward in self.rewards.values() if reward.model is not None))

    @field_validator("rewards", mode="before")
    @classmethod
    def _numbers_are_weights(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: _reward_in_short(v) for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ReinforceStage:
        if self.updates_per_step > self.prompts_per_step:
            raise ValueError("updates_per_step must not exceed prompts_per_step: an update needs a whole group")
        if not self.tasks:
            raise ValueError("tasks must name at least one source of problems")
        if all(task.from_step > 1 for task in self.tasks.values()):
            raise ValueError("tasks must name a source of problems for step 1, where `from_step` is 1")
        for name, reward in self.rewards.items():
            unknown = set(reward.tasks) - set(self.tasks)
            if unknown:
                raise ValueError(f"rewards.{name}.tasks names {sorted(unknown)[0]!r}, which is none of the tasks")
        return self


class ModelShape(Settings):
    """A new decoder, made from nothing."""

    family: Literal["llama", "qwen3"] = "llama"
    """Architecture, as in Hugging Face's `model_type`. Not qwen2: transformers would split its texts in its own way."""
    tokenizer: str | None = None
    """Take the tokenizer of this model (a stage, a name, a folder); None trains one on the stage's own text. A student
    that shares its teacher's tokenizer can learn from the teacher's probabilities, too."""
    vocab_size: int = Field(1024, ge=452)
    """Tokens of the byte-level BPE that is trained where no `tokenizer` is named."""
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 32
    max_positions: int = 1024
    tied_embeddings: bool = True
    seed: int | None = None
    """Of the first weights; None follows from the recipe's seed."""


class SampleStage(Settings):
    """`sample`: builds a data set. Generates, filters, keeps; or reads and generates what comes from elsewhere."""

    verb: Literal["sample"]
    model: str | None = None
    """What answers the problems; None where all examples come from `sources`."""
    template: str = "r1-zero"
    """As in `reinforce`."""
    tasks: dict[str, TaskSettings] = {}
    """Sources of problems for the model by task name; only their train split is used."""
    problems: int = Field(1000, ge=1)
    """Different problems to put to the model."""
    samples: int = Field(4, ge=1)
    """Rollouts a problem."""
    sampling: SamplingSettings = SamplingSettings()
    keep: KeepSettings = KeepSettings()
    judge: EndpointSettings | None = None
    """A model that is given reference and prediction, for problems that no rule can judge [R1 2.3.3, Listing 4]."""
    rewrite: RewriteSettings | None = None
    """Bring what was kept into the cold-start shape; None leaves it as sampled."""
    sources: dict[str, SourceSettings] = {}
    """Examples from elsewhere by kind: `mini-world`, `file`, `hub`; a label may follow, as in `file:cold`."""
    decontaminate_ngram: int = Field(10, ge=0)
    """Drop examples that share a word n-gram with a benchmark of the recipe; 10 in [R1 D.1], 0 is off."""
    checkpoint_every: int = Field(64, ge=1)
    """Problems between states from which a resume is possible."""

    @model_validator(mode="after")
    def _has_a_source(self) -> SampleStage:
        if (self.model is None) != (not self.tasks):
            raise ValueError("`model` and `tasks` go together: the model answers the tasks' problems")
        if not self.tasks and not self.sources:
            raise ValueError("give `model` and `tasks`, or `sources`, or both")
        return self


class OnPolicySettings(Settings):
    """On-policy distillation: the student samples, the teacher's probabilities of every token are its target."""

    teacher: str
    """A stage's name, a name, a folder: a model with the student's tokenizer."""
    tasks: dict[str, TaskSettings]
    """Sources of the prompts; only their train split is used."""
    prompts_per_step: int = Field(32, ge=1)
    """Different problems a step."""
    samples: int = Field(4, ge=1)
    """Completions a problem."""
    sampling: SamplingSettings = SamplingSettings()


class FineTuneStage(Settings):
    """`fine_tune`: next-token training on replies, from a model or from nothing; also on-policy distillation."""

    verb: Literal["fine_tune"]
    model: str | None = None
    """Where to start from; None with `shape` starts from random weights."""
    shape: ModelShape | None = None
    """Make a new model of this shape."""
    max_positions: int | None = Field(None, ge=16)
    """Longest sequence of the new model, in tokens, where `model` allows fewer than `context`: Qwen2.5-Math allows
    4,096. The frequencies of its rotary positions stay."""
    data: tuple[str, ...] = ()
    """`mini-world` (text that Ponder generates, alone), or `sample` stages, their `data/` folders, and files of
    examples (JSONL or Parquet)."""
    data_options: dict[str, Any] = {}
    """Passed to the text generator; its `seed`, where not given, follows from the recipe's."""
    on_policy: OnPolicySettings | None = None
    """Learn from a teacher on the student's own samples, in place of `data`."""
    template: str = "r1-zero"
    """Prompt template around the data's prompts, as in `reinforce`; generation must use the same."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data; 2 to 3 in [R1 B.4.2]. Exactly one of this and `steps`."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; needed where the data never end (`mini-world`, `on_policy`)."""
    tokens_per_step: int = Field(16384, ge=64)
    """Tokens an optimizer step."""
    context: int = Field(512, ge=16)
    """Longest packed row, in tokens; 32,768 in [R1 B.4.2]. Longer examples are left out and counted."""
    tokens_per_micro_batch: int = Field(4096, ge=64)
    """Packing budget of one forward and backward pass, in tokens: lower it when memory is short."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3, schedule="cosine", warmup_steps=50)
    lora: LoraSettings | None = None
    """Train adapters only; None trains every weight, as R1 did."""
    min_stop_rate: float = Field(0.9, ge=0, le=1)
    """After training on examples, the smallest share of sampled replies that end by themselves; 0 skips the gate."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between states from which an exact resume is possible."""

    @model_validator(mode="after")
    def _one_of_each(self) -> FineTuneStage:
        if (self.model is None) == (self.shape is None):
            raise ValueError("give exactly one of `model` (start from weights) and `shape` (start from nothing)")
        if self.max_positions is not None and self.shape is not None:
            raise ValueError("`max_positions` goes with `model`: a new model has `shape.max_positions`")
        if self.lora is not None and self.shape is not None:
            raise ValueError("`lora` goes with `model`: a new model has learnt nothing that may be frozen")
        if bool(self.data) == (self.on_policy is not None):
            raise ValueError("give exactly one of `data` and `on_policy`")
        if MINI_WORLD in self.data and self.data != (MINI_WORLD,):
            raise ValueError(f"`{MINI_WORLD}` never ends, so it must be the only entry of `data`")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if self.epochs is not None and (self.on_policy is not None or MINI_WORLD in self.data):
            raise ValueError("`epochs` needs data that end: give `steps`")
        return self


class TrainRewardStage(Settings):
    """`train_reward`: a scalar head on a base model, trained on pairs or on labelled replies [R1 3.1]."""

    verb: Literal["train_reward"]
    model: str = "mini"
    """The base under the head, as in `reinforce`."""
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    """Bradley-Terry on (chosen, rejected): helpful; or safe against unsafe, one reply at a time: safety [R1 3.1]."""
    score: Literal["answer", "reply"] = "answer"
    """What is scored: the final answer only (helpful), or the whole reply with its thinking (safety) [R1 3.1]."""
    data: tuple[str, ...]
    """`mini-world`, or files of pairs or labelled replies (JSONL, gzipped or not, or Parquet)."""
    data_options: dict[str, Any] = {}
    """Passed to the mini world's generator."""
    template: str = "r1-zero"
    """Prompt template around the prompts, as in `reinforce`."""
    judge: EndpointSettings | None = None
    """A model that makes the pairs from unjudged ones: both orders, `judge_votes` times, averaged [R1 B.2]."""
    judge_votes: int = Field(4, ge=2)
    """Judgements a pair, half of them in each order; 4 in [R1 B.2]."""
    judge_margin: float = Field(1.0, ge=0)
    """Pairs whose averaged five-grade verdict differs by no more are dropped; 1 in [R1 B.2]."""
    rows: int = Field(0, ge=0)
    """Pairs or replies to take, drawn by the seed; 0 takes all. A generator needs a number."""
    heldout_share: float = Field(0.15, gt=0, lt=1)
    """Share of the prompts kept for measuring."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data; 1 in [R1 3.1]."""
    rows_per_step: int = Field(32, ge=1)
    """Pairs or replies an optimizer step; 256 in [R1 3.1]."""
    max_tokens: int = Field(512, ge=16)
    """Longest prompt with reply, in tokens; 8,192 in training in [R1 3.1]. Longer ones are left out and counted."""
    frozen_layers: int = Field(0, ge=0)
    """Lowest layers that keep their weights; freezing most of them is several times faster."""
    tokens_per_micro_batch: int = Field(4096, ge=64)
    """Packing budget of one forward and backward pass, in tokens: lower it when memory is short."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=6e-6)
    checkpoint_every: int = Field(20, ge=1)
    """Steps between states from which an exact resume is possible."""


class EvaluateSampling(Settings):
    """How replies are drawn in an evaluation."""

    temperature: float = Field(0.6, ge=0)
    """Softmax temperature; 0 is greedy. 0.6 for every benchmark [R1 D.1]."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass; 0.95 for every benchmark [R1 D.1]."""
    top_k: int = Field(0, ge=0)
    """Keep only the k most probable tokens; 0 keeps all. Endpoints are not told: their API has no such setting."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest completion, in tokens. None: 512 for a task, for a benchmark what it declares, 32,768 [R1 D.1]."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's own end token; they stay in it."""

    def up_to(self, max_tokens: int) -> SamplingSettings:
        """The same with `max_tokens`, unless the recipe gives its own."""
        return SamplingSettings.model_validate(self.model_dump() | {"max_tokens": self.max_tokens or max_tokens})


class EvaluateStage(Settings):
    """`evaluate`: pass@1 over k samples, pass@k, cons@k, lengths, for each model on each task and benchmark."""

    verb: Literal["evaluate"]
    models: tuple[str, ...]
    """Stage names, embedded names, folders, Hub ids, or names in `endpoints`."""
    endpoints: dict[str, EvaluatedEndpoint] = {}
    """Models behind an API, by the name that they have in `models`."""
    template: str = "r1-zero"
    """As in `reinforce`. Endpoints use their own."""
    tasks: dict[str, TaskSettings] = {}
    """Sources of problems by task name; only their test split is used."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks by name (docs/benchmarks.md), each with its own prompt, verifier, k and length."""
    data_dir: str | None = None
    """Folder that holds the benchmarks' files; None reads them from the Hub."""
    templates: dict[str, str] = {}
    """Another template for single models, by their name in `models`."""
    problems: int | None = Field(None, ge=1)
    """Problems of each task and benchmark; None asks 100 held-out problems of a task, all of a benchmark."""
    samples: int | None = Field(None, ge=1)
    """k. None: 16 for a task; for a benchmark 4 to 64 by its size [R1 D.1]."""
    sampling: EvaluateSampling = EvaluateSampling()
    published: bool = False
    """Show the paper's own figures beside the table, marked as published."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateStage:
        if not self.tasks and not self.benchmarks:
            raise ValueError("give `tasks`, or `benchmarks`, or both")
        if len(set(self.benchmarks)) != len(self.benchmarks):
            raise ValueError("`benchmarks` names one twice")
        if len(set(self.models)) != len(self.models):
            raise ValueError("`models` names one twice")
        unknown = sorted(set(self.endpoints) - set(self.models))
        if unknown:
            raise ValueError(f"`endpoints` names {unknown[0]!r}, which is none of `models`")
        return self

    @property
    def task_problems(self) -> int:
        """Held-out problems of a task."""
        return self.problems or 100

    @property
    def task_samples(self) -> int:
        """Samples a problem of a task."""
        return self.samples or 16

    @property
    def task_sampling(self) -> SamplingSettings:
        """How a task's problems are answered."""
        return self.sampling.up_to(512)


Stage = Annotated[
    Union[ReinforceStage, SampleStage, FineTuneStage, TrainRewardStage, EvaluateStage], Field(discriminator="verb")
]


class JudgingSettings(Settings):
    """Where answers are judged: in processes that are killed when they hang. No verdict depends on `workers`."""

    workers: int = Field(2, ge=0)
    """Processes that judge while others are generated; 0 judges in the run's own process, where a hang is the run's."""
    cpu_s: float = Field(30.0, gt=0)
    """Processor time of one judgement; a worker that needs more is killed, and the answer counts as wrong."""
    deadline_s: float = Field(600.0, gt=0)
    """The same on the clock: for a program that sleeps through all its tests."""


class VllmSettings(Settings):
    """vLLM, in an environment of its own."""

    python: str = ".venv-vllm/bin/python"
    """The interpreter of that environment, on every node that holds a rollout worker (`make vllm` makes one)."""
    tensor_parallel: int = Field(1, ge=1)
    """Devices that share one copy of the model."""
    memory_share: float = Field(0.85, gt=0, le=1)
    """Share of a device's memory that vLLM takes."""
    options: dict[str, Any] = {}
    """Passed to vLLM's engine as they are."""


class RolloutWorkersSettings(Settings):
    """Who samples: processes that each hold a whole copy of the model."""

    engine: Literal["native", "vllm"] = "native"
    """Ponder's own engine, or vLLM."""
    workers: int = Field(1, ge=1)
    """How many there are."""
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False)
    """GPUs that Ray reserves for each; 0 computes on the CPU. At most 1 for the native engine, `vllm.tensor_parallel`
    for vLLM; a part of one shares it with others."""
    cpus: float = Field(1.0, ge=0, allow_inf_nan=False)
    """CPU cores that Ray reserves for each."""
    threads: int = Field(1, ge=1)
    """CPU threads of the linear algebra of each. Part of exact resume: sums depend on it."""
    vllm: VllmSettings = VllmSettings()

    @model_validator(mode="after")
    def _gpus_are_used(self) -> RolloutWorkersSettings:
        if self.engine == "native" and self.gpus > 1:
            raise ValueError("`gpus` must be at most 1, since the native engine computes on one: raise `workers`")
        spread = self.vllm.tensor_parallel
        if self.engine == "vllm" and self.gpus and self.gpus != spread and max(self.gpus, spread) > 1:
            raise ValueError(f"`gpus` must be {spread}, as many as `vllm.tensor_parallel` spreads one copy over")
        return self


class TrainerRanksSettings(Settings):
    """Who updates: ranks of torch.distributed."""

    ranks: int = Field(1, ge=1)
    """How many there are. A checkpoint resumes on another number of them."""
    sharding: Literal["fsdp2", "ddp"] = "fsdp2"
    """Weights, gradients and moments in shards, or whole on every rank."""
    gpus: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Part of a GPU that Ray reserves for each, which computes on one; 0 computes on the CPU with gloo."""
    cpus: float = Field(1.0, ge=0, allow_inf_nan=False)
    """CPU cores that Ray reserves for each."""
    threads: int = Field(1, ge=1)
    """CPU threads of the linear algebra of each. Part of exact resume: sums depend on it."""

    @model_validator(mode="after")
    def _no_two_on_a_gpu(self) -> TrainerRanksSettings:
        if self.ranks > 1 and 0 < self.gpus <= 0.5:
            raise ValueError("`gpus` must be above 0.5: NCCL refuses two ranks on one GPU, where Ray might put them")
        return self


class RewardModelsSettings(Settings):
    """Who scores while `reinforce` runs: reward models; a text stands for `place`."""

    place: Literal["shared", "separate"] = "shared"
    """All in the driver's process, on the recipe's `device`, or each in a worker of its own."""
    gpus: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """`separate` only: part of a GPU that Ray reserves for each, which computes on one; 0 computes on the CPU."""
    cpus: float = Field(1.0, ge=0, allow_inf_nan=False)
    """`separate` only: CPU cores that Ray reserves for each."""
    threads: int = Field(1, ge=1)
    """`separate` only: CPU threads of the linear algebra of each. Part of exact resume: sums depend on it."""


class DeadlineSettings(Settings):
    """Seconds that one part of a cluster waits for another before it takes it for lost."""

    start_s: float = Field(600.0, gt=0)
    """Until a worker has started and holds the model."""
    silent_s: float = Field(60.0, gt=0)
    """Between two signs of life of a rollout worker that has work, or of a rank."""
    rollout_s: float = Field(3600.0, gt=0)
    """For one batch of rollouts on one worker."""
    update_s: float = Field(3600.0, gt=0)
    """For one step of the trainers, and for each exchange between their ranks."""
    weights_s: float = Field(600.0, gt=0)
    """Until new weights have reached the rollout workers, or a checkpoint is written."""


class ClusterSettings(Settings):
    """Where a recipe computes; a text stands for `kind`."""

    kind: Literal["local", "ray"] = "local"
    """This process alone, or rollout workers and trainers on a Ray cluster."""
    address: str | None = None
    """Ray's head: None starts Ray on this machine for this run, `auto` joins the one that runs here, or host:port."""
    rollout: RolloutWorkersSettings = RolloutWorkersSettings()
    trainer: TrainerRanksSettings = TrainerRanksSettings()
    reward_models: RewardModelsSettings = RewardModelsSettings()
    schedule: Literal["synchronous", "one_step_behind", "asynchronous"] = "synchronous"
    """Sample and update in turn; sample the next batch while this one trains; or never wait: new weights reach the
    workers between two tokens, and a rollout goes on under them [AReaL, PipelineRL]."""
    max_staleness: int = Field(1, ge=1)
    """`asynchronous` only: updates that a rollout's oldest token may lie behind the policy that learns from it [AReaL].
    """
    max_restarts: int = Field(100, ge=0)
    """Lost workers and trainers that one start of a stage replaces before it stops (the same command goes on)."""
    deadlines: DeadlineSettings = DeadlineSettings()

    @field_validator("reward_models", mode="before")
    @classmethod
    def _text_is_the_place(cls, value: Any) -> Any:
        return {"place": value} if isinstance(value, str) else value

    @property
    def reserves_gpus(self) -> bool:
        """Whether any worker or rank has a GPU."""
        return self.rollout.gpus > 0 or self.trainer.gpus > 0

    def what_counts(self) -> dict[str, Any]:
        """What a result depends on beyond rounding. How many workers and ranks there are, and where reward models
        score, is not among it: a run may go on with others, and is then no longer repeated bit for bit."""
        if self.kind == "local":
            return {}
        staleness = {"max_staleness": self.max_staleness} if self.schedule == "asynchronous" else {}
        return {"kind": self.kind, "engine": self.rollout.engine, "schedule": self.schedule, **staleness}


Device = Literal["auto", "cpu", "cuda"]


class StoreSettings(Settings):
    """How large a run's records may grow; no result depends on it."""

    rollouts_mib: float = Field(2048.0, gt=0)
    """Of rollouts.sqlite, in MiB: beyond it the oldest steps lose token ids, then texts, then their rows."""
    metrics_mib: float = Field(64.0, gt=0)
    """Of metrics.jsonl, in MiB: beyond it the older half keeps every second step of training only, or fewer."""


class TensorBoardSettings(Settings):
    """Event files for TensorBoard."""

    folder: str | None = None
    """Where they go, a folder a stage; None is `tensorboard/` in the run folder."""


class WandbSettings(Settings):
    """Weights & Biases: metrics and settings leave this machine, unless `mode` is offline."""

    project: str | None = None
    """None takes the recipe's name."""
    entity: str | None = None
    """Team or user; None takes the account's own."""
    mode: Literal["online", "offline"] = "online"
    """Offline keeps everything in the run folder, for `wandb sync`."""


class TrackioSettings(Settings):
    """Trackio: a data base on this machine, or a Space of the Hub."""

    project: str | None = None
    """None takes the recipe's name."""
    space: str | None = None
    """A Space (OWNER/NAME) that shows the metrics; None keeps them on this machine."""


class TrackingSettings(Settings):
    """Where metrics go besides the run folder: nowhere, unless named; `true` takes a tracker's defaults."""

    tensorboard: TensorBoardSettings | None = None
    wandb: WandbSettings | None = None
    trackio: TrackioSettings | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _true_takes_the_defaults(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else None
        return value


class Recipe(Settings):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder."""
    seed: int = 0
    """Every random stream follows from it."""
    threads: int = Field(0, ge=0)
    """CPU threads of the linear algebra; 0 takes all cores. Part of exact resume: sums depend on it."""
    device: Device = "auto"
    """Where models compute; `auto` takes a GPU where there is one. On Ray, workers and ranks compute where the GPUs of
    `cluster` say: where it reserves none, `auto` refuses a cluster that has some."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of training and sampling, and of the weights of reward models that score. Weights that train, moments
    and log-probabilities are fp32 in any case."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, about a third more time."""
    cluster: ClusterSettings = ClusterSettings()
    stop_s: float = Field(60.0, ge=0)
    """Seconds that SIGTERM leaves a training stage to end its step and save it; then the last checkpoint counts."""
    judging: JudgingSettings = JudgingSettings()
    """The verifiers' workers."""
    tracking: TrackingSettings = TrackingSettings()
    """Trackers of metrics; no result depends on them."""
    store: StoreSettings = StoreSettings()
    stages: dict[str, Stage]
    """In any order: each runs after those that it starts from."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _text_is_the_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _cluster_fits(self) -> Recipe:
        schedule, local = self.cluster.schedule, self.cluster.kind == "local"
        if schedule != "synchronous" and local:
            raise ValueError(
                f"cluster.schedule `{schedule}` needs `cluster.kind: ray`, where one samples and one trains"
            )
        if local and "kind" not in self.cluster.model_fields_set:
            _refuse_without_kind(self.cluster)
        if not local and schedule != "asynchronous" and self.cluster.max_staleness != 1:
            raise ValueError(
                f"cluster.max_staleness is for `cluster.schedule: asynchronous`, and the schedule is {schedule}: set "
                "it, or leave max_staleness out"
            )
        if not local and self.device == "cuda" and not self.cluster.reserves_gpus:
            raise ValueError(
                "device: cuda: on Ray each process has the GPUs that are reserved for it, which are none: set "
                "cluster.rollout.gpus and cluster.trainer.gpus"
            )
        for name, stage in self.stages.items():
            if not local:
                _needs_one_process(name, stage)
            if not isinstance(stage, ReinforceStage):
                continue
            if stage.algorithm.dynamic_sampling_retries and schedule != "synchronous":
                raise ValueError(f"stages.{name}: `dynamic_sampling_retries` needs `cluster.schedule: synchronous`")
            if stage.sampling.filtered and self.cluster.rollout.engine == "vllm" and not local:
                raise ValueError(
                    f"stages.{name}.sampling: vLLM has no log-probabilities before top-p and top-k, which training "
                    "needs: set top_p to 1 and top_k to 0, or cluster.rollout.engine to native"
                )
        return self

    @model_validator(mode="after")
    def _stage_names(self) -> Recipe:
        if not self.stages:
            raise ValueError("stages must hold at least one stage")
        for name in self.stages:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"stage name {name!r} may hold letters, digits, - and _ only")
        return self


def _refuse_without_kind(cluster: ClusterSettings) -> None:
    """Raises `ValueError` for settings of Ray where nobody has said that there is none: `kind: local` keeps them, so
    that a recipe for a cluster can be tried in one process."""
    for name, field in type(cluster).model_fields.items():
        if getattr(cluster, name) != field.default:
            raise ValueError(f"cluster.{name} is for `cluster.kind: ray`: set `kind` to ray, or to local to ignore it")


def _needs_one_process(name: str, stage: Stage) -> None:
    """Raises `ValueError` for what ranks and workers cannot do: said here, not once the stages before it have run."""
    if isinstance(stage, FineTuneStage) and stage.on_policy is not None:
        raise ValueError(
            f"stages.{name}.on_policy learns in one process: set cluster.kind to local, or learn from `data` that the "
            "teacher has written"
        )
    if isinstance(stage, ReinforceStage | FineTuneStage) and stage.lora is not None and stage.lora.quantise != "none":
        raise ValueError(
            f"stages.{name}.lora.quantise: {stage.lora.quantise} is for one process: set it to none, or cluster.kind "
            "to local"
        )


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Parse a recipe from a YAML file or a mapping, after applying `a.b=c` overrides.

    Raises `BrokenInputError` for a file that is missing or no YAML, `UsageError` for a wrong key or value.
    """
    if isinstance(source, Mapping):
        raw: Any = copy.deepcopy(dict(source))  # overrides must not reach the caller's own mapping
        where = "the recipe"
    else:
        where = str(source)
        try:
            raw = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise BrokenInputError(f"cannot read the recipe {source}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BrokenInputError(f"{source} is not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping with `name` and `stages`")
    overrides = tuple(overrides)
    for override in overrides:
        _apply_override(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error
    if recipe.cluster.kind == "local":
        _refuse_for_ray(overrides)
    return recipe


def _refuse_for_ray(overrides: Iterable[str]) -> None:
    for override in overrides:
        path = override.partition("=")[0].strip()
        if path.startswith("cluster.") and path != "cluster.kind":
            raise UsageError(f"--set {path} is for `cluster.kind: ray`, and kind is local: add --set cluster.kind=ray")


_TEXT_STANDS_FOR = {("cluster",): "kind", ("cluster", "reward_models"): "place"}
"""Blocks that may be written as one of their settings."""


def _apply_override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override!r} must look like stages.zero.steps=50")
    node: Any = raw
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(node, dict):
            raise UsageError(f"--set {path}: {key!r} lies below a value that is no mapping")
        if isinstance(node.get(key), (int, float)) and node is not raw:
            node[key] = {"weight": node[key]}  # a reward written as a bare weight
        if isinstance(node.get(key), str) and (short := _TEXT_STANDS_FOR.get(tuple(keys[: depth + 1]))):
            node[key] = {short: node[key]}
        node = node.setdefault(key, {})
    if not isinstance(node, dict):
        raise UsageError(f"--set {path}: {keys[-1]!r} lies below a value that is no mapping")
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {path}: {text!r} is not a YAML value") from error


def _explain(error: ValidationError) -> str:
    """The first problem in one sentence, with the nearest valid key where a key is unknown."""
    # a mistyped key also makes the right one missing: say the cause first
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    tags = tuple(_VERBS)
    # pydantic puts the verb into the path of a discriminated union; a person never wrote it there
    path = [str(p) for i, p in enumerate(first["loc"]) if not (p in tags and i == 2)]
    if first["type"] == "extra_forbidden":
        owner: Any = Recipe
        for part in first["loc"][:-1]:
            owner = _step_into(owner, part)
        valid = sorted(owner.model_fields) if owner is not None else []
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key `{'.'.join(path)}`: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first.get("input"), (dict, BaseModel)) else f" (got {first.get('input')!r})"
    return f"`{'.'.join(path) or 'recipe'}`: {message}{shown}"


def _step_into(owner: Any, part: str | int) -> Any:
    """The settings class that `part` of an error's path leads to, or None."""
    if part in _VERBS:
        return _VERBS[str(part)]
    if isinstance(owner, type) and issubclass(owner, BaseModel) and part in owner.model_fields:
        return _settings_in(owner.model_fields[str(part)].annotation)
    return owner  # a key of a dict of settings: stays at the value's class


_VERBS: dict[str, type[Settings]] = {
    "reinforce": ReinforceStage,
    "sample": SampleStage,
    "fine_tune": FineTuneStage,
    "train_reward": TrainRewardStage,
    "evaluate": EvaluateStage,
}


def _settings_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _settings_in(inner)
        if found is not None:
            return found
    return None


def to_yaml(recipe: Recipe) -> str:
    """The recipe as resolved, every default written out."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
