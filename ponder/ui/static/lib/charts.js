// Which metrics are drawn together, in which order (docs/metrics.md says what each means). What is not named here is
// drawn by itself under "All other metrics".

import { number, percent } from "./format.js";

const share = { form: percent, share: true };
const plain = { form: number };

/**
 * `lines`: [metric, label, {colour, dashed, noisy, band, alone}]; `band`: its interval is logged as `_low` and `_high`;
 * `alone`: left out where several stages are drawn over each other. A metric may be a RegExp: then every match is a line,
 * labelled by its group.
 */
export const CHARTS = [
  {
    title: "Held-out accuracy", wide: true, ...share,
    note: "pass@1 over the samples of problems that are never trained on, with its 95% interval; cons@k is the vote of a problem's samples.",
    lines: [["heldout/accuracy/pass@1", "pass@1", { band: true }], [/^heldout\/accuracy\/(cons@\d+)$/, "", { dashed: true }]],
  },
  { title: "Held-out accuracy by task", ...share, lines: [[/^heldout\/accuracy\/pass@1\/(.+)$/, ""]] },
  {
    title: "Accuracy in training", ...share,
    lines: [["accuracy/pass@1", "pass@1", { noisy: true }], ["accuracy/train", "of the step's rows", { noisy: true }]],
  },
  { title: "Held-out accuracy of the reward model", ...share, lines: [["heldout/accuracy/mean", "all", { band: true }]] },
  {
    title: "Response length", note: "Tokens a completion, while training. What is cut is as long as the limit: its share has a curve of its own.", ...plain,
    lines: [["length/mean", "all", { noisy: true }], ["length/correct", "right", { noisy: true, colour: 3, alone: true }], ["length/wrong", "wrong", { noisy: true, colour: 2, alone: true }]],
  },
  {
    title: "Held-out response length", ...plain,
    lines: [["heldout/length/mean", "all"], ["heldout/length/correct", "right", { colour: 3, alone: true }], ["heldout/length/wrong", "wrong", { colour: 2, alone: true }]],
  },
  {
    title: "Cut at the length limit", ...share,
    lines: [["length/truncated_share", "training", { noisy: true }], ["heldout/length/truncated_share", "held out", { dashed: true }]],
  },
  {
    title: "Reflection words", note: "wait, check, mistake, ... a completion.", ...plain,
    lines: [["reflection/words_per_response", "training", { noisy: true }], ["heldout/reflection/words_per_response", "held out", { dashed: true }]],
  },
  {
    title: "Language consistency", note: "Words of the thinking in the problem's language.", ...share,
    lines: [["language/consistency", "training", { noisy: true }], ["heldout/language/consistency", "held out", { dashed: true }]],
  },
  {
    title: "Loss", ...plain,
    lines: [["loss/train", "training", { noisy: true }], ["loss/heldout", "held out", { dashed: true }]],
  },
  { title: "Reverse KL to the teacher", ...plain, lines: [["distill/reverse_kl", "nats a token", { noisy: true }]] },
  { title: "Reward and its parts", ...plain, lines: [["reward/mean", "in all", { noisy: true }], [/^reward\/(?!mean$)(.+)$/, "", { noisy: true, alone: true }]] },
  { title: "Entropy", note: "Nats a token.", ...plain, lines: [["policy/entropy", "", { noisy: true }]] },
  { title: "KL to the reference", note: "Nats a token; 0 without a reference model.", ...plain, lines: [["policy/kl", "", { noisy: true }]] },
  { title: "Dead groups", note: "Groups whose rewards are all the same teach nothing.", ...share, lines: [["groups/dead_share", "", { noisy: true }]] },
  { title: "Log-probability gap", note: "Largest difference between trainer and sampler, in nats.", ...plain, lines: [["policy/logprob_gap", "", { noisy: true }]] },
  { title: "Mean log-probability gap", note: "Mean difference between trainer and sampler over all tokens, in nats.", ...plain, lines: [["policy/logprob_gap_mean", "", { noisy: true }]] },
  { title: "KL from sampler to trainer", note: "Estimated, in nats a token.", ...plain, lines: [["policy/sampler_kl", "", { noisy: true }]] },
  { title: "Bounded importance weights", note: "Tokens whose weight was cut, or that were dropped for it.", ...share, lines: [["policy/importance_bounded_share", "", { noisy: true }]] },
  { title: "Staleness", note: "Updates between the policy that began a rollout and the one that learns from it; 0 when synchronous.", ...plain, lines: [["policy/staleness", "", { noisy: true }]] },
  { title: "Waiting", note: "Seconds of a step in which the trainer waits for rollouts.", ...plain, lines: [["time/wait", "", { noisy: true }]] },
  { title: "Kept for the data set", ...share, lines: [["data/kept_share", "", { noisy: true }]] },
  {
    title: "Speed", note: "Tokens a second.", ...plain,
    lines: [["speed/rollout_tokens_per_s", "sampling", { noisy: true }], ["speed/train_tokens_per_s", "training", { noisy: true }]],
  },
];

/** What is of little use as a curve: alerts are marked in the charts, counts stand with the stage. */
export const HIDDEN = /^(watchdog|tokens|time|data)\/|_(low|high)$/;

/** The metrics of `names` that a chart draws: [[metric, label, options]]. */
export function linesOf(chart, names) {
  return chart.lines.flatMap(([metric, label, options = {}]) => {
    if (typeof metric === "string") return names.has(metric) ? [[metric, label, options]] : [];
    const found = [...names].filter((name) => metric.test(name)).sort();
    return found.map((name) => [name, name.match(metric)[1], options]);
  });
}
