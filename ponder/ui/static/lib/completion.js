// A completion: its text with reflection words marked, or token by token in colours that say what is known of each.

import { copyText, fill, h } from "./dom.js";
import { number } from "./format.js";

const LEVELS = 10;

/** A share between 0 and 1 as the number of a shade. */
const shade = (share) => Math.round((LEVELS - 1) * Math.min(1, Math.max(0, share)));

const oneHue = (kind, share) => (value) => `${kind} k${shade(share(value))}`;
/** Blue above the middle, red below; `away`: 1 and -1 are the ends of the scale. */
const twoHues = (away) => (value) => `${away(value) < 0 ? "less" : "more"} k${shade(Math.abs(away(value)))}`;

const NOT_KEPT = "not stored by the version of Ponder, or the engine, that wrote this";
const NOT_TRAINED = "this rollout was not trained on";

/**
 * What tokens are coloured by. `values`: one a token of a row; `tint`: a value's classes; `ends`: what the ends of the
 * scale stand for (and its middle, where there are two hues); `says`: what it is; `why`: why a row cannot be shown so.
 */
const COLOURINGS = {
  probability: {
    title: "Probability",
    values: ({ tokens }) => tokens.logprobs.map((logprob) => (logprob === null ? null : Math.exp(logprob))),
    tint: oneHue("probability", (p) => 1 - p),
    ends: ["1, certain", "0, all but impossible"],
    says: () => "Probability p of the token under the policy that sampled it.",
    why: () => null,
  },
  surprise: {
    title: "Surprise",
    values: ({ tokens }) => tokens.logprobs.map((logprob) => (logprob === null ? null : -logprob)),
    tint: oneHue("surprise", (nats) => nats / 5),
    ends: ["0 nats", "5 nats or more"],
    says: () => "−log p: what the token says that could not be foreseen.",
    why: () => null,
  },
  entropy: {
    title: "Entropy",
    values: ({ tokens }) => tokens.entropies,
    tint: oneHue("entropy", (nats) => nats / 2),
    ends: ["0 nats, one choice", "2 nats or more, about 7 choices"],
    says: () => "Entropy of the distribution that the token was drawn from: how open it was what comes next.",
    why: ({ tokens }) => (tokens.entropies.length ? null : NOT_KEPT),
  },
  advantage: {
    title: "Advantage",
    values: ({ tokens, advantage }) => tokens.texts.map(() => advantage),
    tint: twoHues((advantage) => advantage / 2),
    ends: ["−2 or less, made less likely", "0", "2 or more, made more likely"],
    says: ({ advantage }) => `All tokens of a rollout share its advantage, here ${number(advantage)}.`,
    why: ({ advantage }) => (advantage === null ? NOT_TRAINED : null),
  },
  ratio: {
    title: "Ratio",
    values: ({ tokens }) => tokens.ratios,
    tint: twoHues((ratio) => Math.log2(ratio)),
    ends: ["½ or less", "1", "2 or more"],
    says: () => "Probability of the token under the policy that learnt from it / under the policy that sampled it.",
    why: ({ tokens, advantage }) => (tokens.ratios.length ? null : advantage === null ? NOT_TRAINED : NOT_KEPT),
  },
  version: {
    title: "Policy version",
    values: ({ tokens }) => tokens.versions,
    tint: null, // each version has a shade of its own, see `tintOf`
    says: () => "New weights came while the rollout was under way: which version of the policy sampled each token.",
    why: ({ tokens, version }) => (tokens.versions.length ? null : version === null ? NOT_KEPT : `one version, ${version}, sampled all of it`),
  },
};

const HINT = "Point at a token, or step through them with the arrow keys, to read its numbers.";

let chosenKind = "plain"; // also for the next rollout that is opened

/** The card of a rollout's completion; null where its text is no longer stored. */
export function showCompletion(row) {
  if (row.text_dropped) return null;
  const text = h("pre", { class: "completion", dir: "auto", "aria-label": "Completion" });
  const legend = h("div", { class: "scale" });
  const readout = h("p", { class: "readout small figures", role: "status", hidden: true });
  const reasons = Object.fromEntries(Object.entries(COLOURINGS).map(([kind, { why }]) => [kind, row.tokens.missing ?? why(row)]));
  const draw = (kind) => {
    const isPlain = kind === "plain";
    text.replaceChildren(...(isPlain ? marked(row) : coloured(row, kind)));
    text.toggleAttribute("data-tokens", !isPlain);
    if (isPlain) text.removeAttribute("tabindex");
    else text.tabIndex = 0;
    fill(legend, isPlain ? turnNote(row) : [scale(row, kind), h("span", {}, COLOURINGS[kind].says(row))]);
    fill(readout, HINT).hidden = isPlain;
  };
  readTokens(text, (index) => fill(readout, numbers(row, index)));
  const kind = reasons[chosenKind] === null ? chosenKind : "plain";
  const choose = (event) => draw((chosenKind = event.target.value));
  const options = Object.entries(COLOURINGS).map(([own, { title }]) =>
    h("option", { value: own, selected: own === kind, disabled: reasons[own] !== null }, reasons[own] === null ? title : `${title} (see below)`));
  draw(kind);
  return h("div", { class: "card" },
    h("div", { class: "row" },
      h("p", { class: "eyebrow" }, "Completion"),
      h("label", { class: "small row end" }, "Colour by", h("select", { class: "colour", onchange: choose }, h("option", { value: "plain" }, "Reflection words"), options)),
      h("button", { type: "button", onclick: () => copyText(row.text) }, "Copy"),
    ),
    legend,
    text,
    readout,
    row.tokens.missing ? h("p", { class: "small muted" }, row.tokens.missing) : whyNot(reasons),
  );
}

function turnNote({ turn }) {
  if (!turn) return null;
  return turn.kind === "correction"
    ? "A wrong result before the strongly marked word is worked out again after it, rightly."
    : "After the strongly marked word it leaves one way for another, and the last result is right.";
}

/** Why some colourings cannot be chosen. */
function whyNot(reasons) {
  const lines = Object.entries(reasons).filter(([, reason]) => reason !== null).map(([kind, reason]) => `${COLOURINGS[kind].title}: ${reason}.`);
  return lines.length > 0 && h("p", { class: "small muted reasons" }, lines.join(" "));
}

/** The text with its reflection words marked; what the parser took for thinking is dimmed. */
function marked({ text, thinking, reflections, turn }) {
  const parts = [];
  const thoughtUntil = thinking ? text.indexOf(thinking) + thinking.length : 0;
  const add = (from, to, mark) => {
    if (from < thoughtUntil && thoughtUntil < to) return [add(from, thoughtUntil, mark), add(thoughtUntil, to, mark)];
    return parts.push(h(mark ? "mark" : "span", { class: `${from < thoughtUntil ? "thought" : ""} ${mark}` }, text.slice(from, to)));
  };
  let place = 0;
  for (const [start, end] of reflections) {
    // Python counts code points, JavaScript UTF-16 units
    const [from, to] = [offset(text, start), offset(text, end)];
    add(place, from, "");
    add(from, to, turn?.start === start ? "turning" : "word");
    place = to;
  }
  add(place, text.length, "");
  return parts;
}

/** The place in a string of the code point with this number. */
function offset(text, codePoints) {
  let index = 0;
  for (let seen = 0; seen < codePoints && index < text.length; seen++) index += text.codePointAt(index) > 0xffff ? 2 : 1;
  return index;
}

// --- token by token ----------------------------------------------------------------------------------------------

function coloured(row, kind) {
  const [values, tint] = [COLOURINGS[kind].values(row), tintOf(row, kind)];
  return row.tokens.texts.map((text, index) => h("span", { class: `t ${values[index] === null ? "" : tint(values[index])}`, "data-index": index }, text));
}

function tintOf(row, kind) {
  if (kind !== "version") return COLOURINGS[kind].tint;
  const [first, last] = [row.tokens.versions[0], row.tokens.versions.at(-1)];
  return oneHue("version", (version) => 0.25 + (0.75 * (version - first)) / (last - first));
}

function scale(row, kind) {
  const steps = [...Array(LEVELS).keys()];
  if (kind === "version") {
    const tint = tintOf(row, kind);
    return h("span", { class: "steps" }, [...new Set(row.tokens.versions)].map((version) => h("span", { class: "step" }, h("i", { class: tint(version) }), String(version))));
  }
  const { ends } = COLOURINGS[kind];
  if (ends.length === 2) return h("span", { class: "steps" }, ends[0], h("span", { class: "step" }, steps.map((step) => h("i", { class: `${kind} k${step}` }))), ends[1]);
  return h("span", { class: "steps" }, ends[0], h("span", { class: "step" }, [9, 7, 5, 3, 1].map((step) => h("i", { class: `less k${step}` })), h("b", {}, ends[1]), [1, 3, 5, 7, 9].map((step) => h("i", { class: `more k${step}` }))), ends[2]);
}

/** All that is known of one token. */
function numbers(row, index) {
  const { texts, logprobs, entropies, ratios, versions } = row.tokens;
  const facts = [
    ["p", logprobs[index] === null ? null : Math.exp(logprobs[index])],
    ["−log p", logprobs[index] === null ? null : -logprobs[index], "nats"],
    ["entropy", entropies[index], "nats"],
    ["ratio", ratios[index]],
    ["version", versions[index]],
  ];
  const shown = facts.filter(([, value]) => value !== undefined);
  return [
    h("code", { dir: "auto" }, JSON.stringify(texts[index].slice(0, 40))),
    shown.map(([name, value, unit]) => h("span", {}, `${name} `, h("b", {}, name === "version" ? String(value) : number(value)), unit ? ` ${unit}` : "")),
  ];
}

/** Tells which token is pointed at, touched, or reached by the arrow keys. */
function readTokens(text, tell) {
  const choose = (token) => {
    if (!token) return;
    text.querySelector(".chosen")?.classList.remove("chosen");
    token.classList.add("chosen");
    tell(Number(token.dataset.index));
  };
  const pointed = (event) => choose(event.target.closest(".t"));
  text.addEventListener("pointerover", pointed);
  text.addEventListener("click", pointed);
  text.addEventListener("keydown", (event) => {
    const chosen = text.querySelector(".chosen");
    const first = text.querySelector(".t");
    const to = { ArrowRight: chosen ? chosen.nextElementSibling : first, ArrowLeft: chosen ? chosen.previousElementSibling : first, Home: first, End: text.lastElementChild }[event.key];
    if (to === undefined || !first) return;
    event.preventDefault();
    choose(to);
    to?.scrollIntoView({ block: "nearest" });
  });
}
