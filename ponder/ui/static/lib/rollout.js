// One rollout: what was asked, what was thought and answered, token by token, and why it was judged so.

import { getJson, postJson } from "./api.js";
import { showCompletion } from "./completion.js";
import { fill, h } from "./dom.js";
import { number } from "./format.js";

export function verdictBadge({ correct, finish_reason }) {
  const cut = finish_reason === "length" && h("span", { class: "badge cut" }, "cut");
  return h("span", { class: "verdicts" }, h("span", { class: `badge ${correct ? "right" : "wrong"}` }, correct ? "right" : "wrong"), cut);
}

/** The element that shows a rollout. `context`: {path, verifiers, signal, address}. */
export async function showRollout(id, context) {
  const row = await getJson(`${context.path}/rollouts/${encodeURIComponent(id)}`, {}, { signal: context.signal });
  return h("article", { class: "rollout" },
    heading(row, context),
    groupStrip(row, context),
    promptBlock(row),
    showCompletion(row),
    judgement(row, context),
    facts(row),
  );
}

function heading(row, { address }) {
  return h("header", { class: "stack tight" },
    h("div", { class: "row" }, h("h1", {}, `${row.stage}, step ${row.step}`), verdictBadge(row), row.split === "test" && h("span", { class: "badge" }, "held out")),
    h("p", { class: "small muted" }, `${row.task}, ${row.language}, difficulty ${row.difficulty}, ${row.length} tokens. `,
      h("a", { href: address("problem", row.problem_id) }, "This problem through the whole run")),
  );
}

/** The other samples of the same problem in the same step, filled in when they have come. */
function groupStrip(row, { path, signal, address }) {
  const strip = h("div", { class: "group" });
  getJson(`${path}/problems/${encodeURIComponent(row.problem_id)}`, {}, { signal }).then(
    ({ groups }) => {
      const own = groups.find((group) => group.stage === row.stage && group.step === row.step && group.split === row.split && group.model === row.model);
      if (own?.rollouts.length > 1) strip.append(h("span", { class: "small muted" }, `Group of ${own.rollouts.length}`), dots(own.rollouts, address, row.id));
    },
    () => {}, // what is lost is a convenience
  );
  return strip;
}

/** A dot for each sample of a group, in the colour of its verdict. */
export function dots(rollouts, address, open = null) {
  return h("span", { class: "samples" }, rollouts.map((own) => {
    const verdict = own.correct ? "right" : own.finish_reason === "length" ? "cut" : "wrong";
    const label = `sample ${own.sample}: ${verdict}, ${own.length} tokens${own.advantage === null ? "" : `, advantage ${own.advantage.toFixed(2)}`}`;
    return h("a", { class: `sample ${verdict}`, href: address(String(own.id)), title: label, "aria-label": label, "aria-current": own.id === open ? "true" : false });
  }));
}

function promptBlock(row) {
  if (row.text_dropped) return h("p", { class: "failure" }, "The text is no longer stored: the file had reached its size cap, and the oldest texts went first.");
  const long = row.prompt.length > 700;
  const text = h("pre", { class: "prompt", dir: "auto" }, row.prompt);
  return long ? h("details", { class: "card" }, h("summary", {}, `Prompt, ${row.prompt.length.toLocaleString("en")} characters`), text) : h("div", { class: "card" }, h("p", { class: "eyebrow" }, "Prompt"), text);
}

// --- the verdict -------------------------------------------------------------------------------------------------

function judgement(row, { path, verifiers, signal }) {
  const outcome = h("div", { class: "outcome", role: "status" });
  const judge = async (verifier) => {
    fill(outcome, h("p", { class: "muted small" }, "Judging …"));
    try {
      const found = await postJson(`${path}/rollouts/${row.id}/judge`, { verifier }, { signal });
      fill(outcome, ...verdictLines(found, row, verifier));
    } catch (error) {
      if (!signal.aborted) fill(outcome, h("p", { class: "small warn" }, error.message));
    }
  };
  const choice = h("select", { "aria-label": "Verifier", onchange: (event) => judge(event.target.value) },
    h("option", { value: "" }, `the rule of ${row.task}`), verifiers.map((name) => h("option", { value: name }, name)));
  if (!row.text_dropped) judge("");
  return h("div", { class: "card" },
    h("div", { class: "row" }, h("p", { class: "eyebrow" }, "Why it was judged so"), h("label", { class: "small row end" }, "Judge again by", choice)),
    h("dl", { class: "pairs" },
      h("dt", {}, "Answer"), h("dd", { class: "mono", dir: "auto" }, row.answer ?? "none that the parser found"),
      h("dt", {}, "Reference"), h("dd", { class: "mono" }, referenceText(row.reference)),
    ),
    outcome,
  );
}

function verdictLines(found, row, verifier) {
  const who = verifier || `The rule of ${row.task}`;
  const lines = [h("p", {}, h("span", { class: `badge ${found.correct ? "right" : "wrong"}` }, found.correct ? "right" : "wrong"), ` ${who}: ${found.why}`, found.extracted !== null && [" (read as ", h("code", {}, found.extracted), ")"])];
  if (!verifier && found.correct !== row.correct) {
    lines.push(h("p", { class: "small warn" }, `During the run it counted as ${row.correct ? "right" : "wrong"}: ${row.finish_reason === "length" ? "it was cut at its length limit." : "the run's reward may also have asked for a form, or the rule has changed since."}`));
  }
  return lines;
}

function facts(row) {
  const rewards = Object.entries(row.rewards);
  return h("div", { class: "card" }, h("p", { class: "eyebrow" }, "Rewards"),
    h("dl", { class: "pairs figures" },
      rewards.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, number(value))]),
      h("dt", {}, "advantage"), h("dd", {}, row.advantage === null ? "none" : number(row.advantage)),
      h("dt", {}, "ended by"), h("dd", {}, row.finish_reason === "length" ? "its length limit" : "itself"),
      row.model && [h("dt", {}, "model"), h("dd", {}, row.model)],
      row.version !== null && [h("dt", {}, "policy version"), h("dd", {}, versionText(row))],
    ),
  );
}

function versionText(row) {
  const last = row.tokens.versions.at(-1) ?? row.version;
  const behind = updatesBehind(row);
  const lag = behind > 0 ? `, ${behind} ${behind === 1 ? "update" : "updates"} before the one that learnt from it` : "";
  return (last === row.version ? String(row.version) : `${row.version} to ${last}`) + lag;
}

/** Updates between the policy of a rollout's first token and the one that learns from it; 0 where none does. */
export function updatesBehind({ step, split, advantage, version }) {
  return version === null || advantage === null || split === "test" ? 0 : step - 1 - version;
}

function referenceText(reference) {
  return typeof reference === "string" ? reference : JSON.stringify(reference);
}
