// Rollouts: a list that is filtered and searched, one rollout token by token, one problem through the whole run.
//
// Addresses: #/rollouts/RUN?filters, #/rollouts/RUN/ID?filters, #/rollouts/RUN/problem/PROBLEM?filters

import { getJson } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { count } from "../lib/format.js";
import { hash } from "../lib/route.js";
import { showProblem } from "../lib/problem.js";
import { showRollout, updatesBehind, verdictBadge } from "../lib/rollout.js";

const TYPING_MS = 350;
const MOST_LOOKS = 8;
const VERDICTS = { "": "Any verdict", right: "Right", wrong: "Wrong", cut: "Cut at the limit", unanswered: "Without an answer" };
const TURNS = { "": "All rollouts", any: "That turn round", correction: "Mistake, then correction", "new course": "New course" };
const FILTERS = "stage split task language verdict step_from step_to version_from version_to length_from length_to reward reward_from reward_to text problem turns".split(" ");

export async function show(root, { parts, query, signal }) {
  const { runs } = await getJson("api/runs", {}, { signal });
  const readable = runs.filter((run) => !run.error);
  if (!readable.length) {
    root.append(h("h1", {}, "Rollouts"), h("p", { class: "empty" }, "There are no runs yet. ", h("code", {}, "ponder run r1-zero-mini"), " starts one."));
    return null;
  }
  const page = new RolloutsPage(root, readable.map((run) => run.name), signal);
  await page.update({ parts, query });
  return page;
}

class RolloutsPage {
  constructor(root, runs, signal) {
    Object.assign(this, { root, runs, signal });
    this.list = h("div", { class: "list" });
    this.filters = h("form", { class: "filters", onsubmit: (event) => event.preventDefault() });
    this.summary = h("p", { class: "small muted figures", role: "status" });
    this.detail = h("section", { class: "detail", "aria-label": "Rollout" });
    this.moreButton = h("button", { type: "button", class: "more", hidden: true, onclick: () => this.loadMore() }, "More");
    const folded = h("details", { class: "filter-fold", open: matchMedia("(min-width: 64rem)").matches }, h("summary", {}, "Filter and search"), this.filters);
    this.turns = h("button", { type: "button", class: "turns", onclick: () => this.change({ turns: this.filter.turns ? "" : "correction" }) }, "Show me the moments it turns round");
    root.append(h("div", { class: "browse" }, folded, this.turns, this.summary, this.list, this.moreButton), this.detail);
  }

  /** The address has changed: another run or filter reads the list anew, another rollout only itself. */
  async update({ parts, query }) {
    const run = parts[0] ?? this.runs[0];
    const filter = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
    const asked = JSON.stringify([run, filter]);
    const isNewRun = run !== this.run;
    Object.assign(this, { run, filter });
    try {
      if (isNewRun) await this.loadFacets();
      if (asked !== this.asked) {
        this.asked = asked;
        this.showFilters();
        await this.loadFirst();
      }
      await this.showDetail(parts.slice(1));
    } catch (error) {
      if (this.signal.aborted) return;
      if (error.status !== 404 || error.message.includes("no run")) throw error;
      fill(this.list, h("p", { class: "empty" }, error.message));
    }
  }

  address(...parts) {
    return hash("rollouts", [this.run, ...parts], this.filter);
  }

  get path() {
    return `api/runs/${encodeURIComponent(this.run)}`;
  }

  async loadFacets() {
    this.facets = { groups: [], rewards: [], verifiers: [] };
    this.showFilters();
    this.facets = await getJson(`${this.path}/rollouts/facets`, {}, { signal: this.signal });
  }

  // --- filters ---------------------------------------------------------------------------------------------------

  showFilters() {
    const { groups, rewards } = this.facets;
    this.turns.setAttribute("aria-pressed", String(Boolean(this.filter.turns)));
    const values = (column) => [...new Set(groups.map((group) => group[column]))];
    const inStage = groups.filter((group) => !this.filter.stage || group.stage === this.filter.stage);
    const [first, last] = [Math.min(...inStage.map((group) => group.first)), Math.max(...inStage.map((group) => group.last))];
    const versions = inStage.flatMap((group) => group.versions ?? []);
    const names = (list, all) => Object.fromEntries([["", all], ...list.map((name) => [name, name])]);
    fill(this.filters, 
      field("Run", h("select", { onchange: (event) => (location.hash = hash("rollouts", [event.target.value])) }, this.runs.map((run) => h("option", { selected: run === this.run }, run)))),
      this.select("Show", "turns", TURNS),
      this.select("Stage", "stage", names(values("stage"), "All stages")),
      this.select("Verdict", "verdict", VERDICTS),
      this.select("Task", "task", names(values("task"), "All tasks")),
      this.select("Language", "language", names(values("language"), "All languages")),
      this.select("Problems", "split", { "": "All problems", train: "Trained on", test: "Held out" }),
      this.range("Step", "step", Number.isFinite(first) ? [first, last] : ["", ""]),
      versions.length ? this.range("Policy version", "version", [Math.min(...versions), Math.max(...versions)]) : null,
      this.range("Length, tokens", "length", ["from", "to"]),
      this.select("Reward", "reward", names(rewards, "Any reward")),
      this.filter.reward ? this.range(`${this.filter.reward} between`, "reward", ["from", "to"], "any") : null,
      h("div", { class: "search" }, field("Search in the text", this.input("text", "search", "wait, 等等, \\boxed …"))),
      this.isFiltered() ? h("button", { type: "button", class: "plain", onclick: () => (location.hash = hash("rollouts", [this.run])) }, "Clear all filters") : null,
    );
  }

  isFiltered() {
    return FILTERS.some((name) => this.filter[name]);
  }

  select(label, name, options) {
    const change = (event) => this.change({ [name]: event.target.value, ...(name === "reward" ? { reward_from: "", reward_to: "" } : {}) });
    return field(label, h("select", { name, onchange: change }, Object.entries(options).map(([value, text]) => h("option", { value, selected: value === this.filter[name] }, text))));
  }

  range(label, name, placeholders, step = 1) {
    const bound = (end, index) => this.input(`${name}_${end}`, "number", String(placeholders[index]), { step, "aria-label": `${label} ${end}` });
    return h("div", { class: "field-range" }, h("span", {}, label), h("div", {}, bound("from", 0), bound("to", 1)));
  }

  input(name, type, placeholder, more = {}) {
    let timer;
    const change = (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => this.change({ [name]: event.target.value }), TYPING_MS);
    };
    return h("input", { name, type, placeholder, value: this.filter[name], oninput: change, ...more });
  }

  /** Another filter: the address says so, and what is typed in keeps its focus. */
  change(values) {
    const focused = document.activeElement?.name;
    const place = document.activeElement?.selectionStart;
    Object.assign(this.filter, values);
    location.hash = hash("rollouts", [this.run], this.filter);
    // the filters are drawn anew when the address has changed
    addEventListener("hashchange", () => setTimeout(() => {
      const field = focused && this.filters.elements.namedItem(focused);
      field?.focus?.();
      if (field?.type === "search") field.setSelectionRange(place, place);
    }), { once: true });
  }

  // --- the list --------------------------------------------------------------------------------------------------

  async loadFirst() {
    fill(this.list, h("p", { class: "loading" }, "Reading …"));
    this.summary.textContent = "";
    this.moreButton.hidden = true;
    this.cursor = null;
    const asked = this.asked;
    const page = await this.load();
    if (asked !== this.asked) return;
    fill(this.list);
    this.append(page);
    if (!page.rows.length && page.next === null) this.list.append(h("p", { class: "empty" }, "Nothing matches these filters."));
    if (!page.rows.length && page.next !== null) this.list.append(h("p", { class: "empty" }, "None among the newest; look on with More."));
    this.showCount(asked);
  }

  async loadMore() {
    this.moreButton.disabled = true;
    try {
      const page = await this.load();
      this.list.querySelector(".empty")?.remove();
      this.append(page);
    } finally {
      this.moreButton.disabled = false;
    }
  }

  /** The next page. A search for turns hands over what it finds in a moment, which may be nothing: then it goes on. */
  async load() {
    let page = { rows: [], next: this.cursor };
    for (let look = 0; look < MOST_LOOKS && !page.rows.length && (look === 0 || page.next !== null); look++) {
      page = await getJson(`${this.path}/rollouts`, { ...this.filter, before: page.next }, { signal: this.signal });
    }
    return page;
  }

  append({ rows, next }) {
    this.cursor = next;
    this.list.append(...rows.map((row) => this.item(row)));
    this.moreButton.hidden = next === null;
    this.markOpen();
  }

  async showCount(asked) {
    if (this.filter.turns) {
      this.summary.textContent = "Right answers with a reflection word where a wrong result is worked out again, or another way is taken; the newest first.";
      return;
    }
    const { count: found } = await getJson(`${this.path}/rollouts/count`, this.filter, { signal: this.signal });
    if (asked === this.asked) this.summary.textContent = found === null ? "Very many rollouts, the newest first" : `${found.toLocaleString("en")} ${found === 1 ? "rollout" : "rollouts"}, the newest first`;
  }

  item(row) {
    const text = row.text === null ? "(its text is no longer stored)" : row.text;
    return h("a", { class: "item", href: this.address(String(row.id)), "data-id": row.id },
      h("span", { class: "row" }, verdictBadge(row), row.kind && h("span", { class: "badge cut" }, row.kind),
        h("span", { class: "small muted figures end" }, `${row.stage} · step ${row.step} · ${row.length} tokens`)),
      h("span", { class: "preview" }, row.turn ? [text.slice(0, row.turn[0]), h("mark", { class: "turning" }, text.slice(...row.turn)), text.slice(row.turn[1])] : text),
      h("span", { class: "small muted" }, `${row.task}, ${row.language}`, row.split === "test" ? ", held out" : "", row.advantage === null ? "" : `, advantage ${signed(row.advantage)}`, age(row)),
    );
  }

  // --- the other side --------------------------------------------------------------------------------------------

  async showDetail(parts) {
    const key = JSON.stringify([this.run, ...parts]);
    this.root.classList.toggle("has-detail", parts.length > 0);
    this.open = parts.length === 1 ? parts[0] : null;
    this.markOpen();
    if (key === this.shownDetail) return this.relink?.();
    this.shownDetail = key;
    const context = { run: this.run, path: this.path, verifiers: this.facets.verifiers, signal: this.signal, address: (...more) => this.address(...more) };
    if (!parts.length) {
      fill(this.detail, h("p", { class: "empty wide-only" }, "Choose a rollout to read how it was thought."));
    } else {
      const view = parts[0] === "problem" ? await showProblem(parts.slice(1).join("/"), context) : await showRollout(parts[0], context);
      if (key !== this.shownDetail) return;
      fill(this.detail, h("a", { class: "back small", href: this.address() }, "← All rollouts"), view);
      if (!matchMedia("(min-width: 64rem)").matches) scrollTo(0, 0);
      else this.detail.scrollTop = 0;
    }
  }

  markOpen() {
    for (const item of this.list.querySelectorAll("a.item")) item.toggleAttribute("aria-current", item.dataset.id === this.open);
  }
}

function field(label, control) {
  return h("label", { class: "field" }, label, control);
}

/** How old the policy was that sampled a rollout, where it was not the one that learnt. */
function age(row) {
  const behind = updatesBehind(row);
  return behind > 0 ? `, by version ${row.version}, ${behind} ${behind === 1 ? "update" : "updates"} old` : "";
}

function signed(value) {
  return `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
}
