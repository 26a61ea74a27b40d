// The page #/chat/CONVERSATION: talk to one model, or to two or three side by side.

import { fill, h, toast } from "../lib/dom.js";
import { remember } from "../lib/route.js";
import { asMarkdown, download, fileName } from "./chat/exporting.js";
import { icon } from "./chat/icons.js";
import { modelName, Models, modelSelect, MOST_MODELS } from "./chat/models.js";
import { begin, isRunning, stop } from "./chat/session.js";
import { openSettings } from "./chat/settings.js";
import { Store } from "./chat/store.js";
import { sends, tool, turnView } from "./chat/turn.js";

const LONGEST_TITLE = 60;
const AT_BOTTOM_PX = 48;
const LARGEST_IMPORT = 20_000_000;

// one for as long as the page lives: replies under way belong to its conversations
const store = new Store(undefined, () => toast("The browser has no room for more conversations: export and delete some"));

export async function show(root, { parts, query, signal }) {
  const models = new Models(store);
  await models.load(signal);
  const page = new ChatPage(root, models, signal);
  page.open(parts[0], query);
  return { update: (route) => page.open(route.parts[0], route.query) };
}

class ChatPage {
  constructor(root, models, signal) {
    this.models = models;
    this.signal = signal;
    this.settings = store.settings;
    this.build(root);
    addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && this.escape(), { signal });
    addEventListener("storage", ({ key }) => !this.isBusy() && store.refresh(key) && this.follow(), { signal });
    addEventListener("pagehide", () => store.get(this.conversation.id) && store.save(this.conversation), { signal });
  }

  // --- what is on the screen -----------------------------------------------------------------------------------------

  build(root) {
    this.list = h("ul", { class: "conversations" });
    this.side = h(
      "aside",
      { class: "side", id: "conversations", "aria-label": "Conversations" },
      h("button", { type: "button", class: "new", onclick: () => this.open() }, icon("plus"), "New chat"),
      this.list,
      this.buildImport(),
    );
    this.choice = h("div", { class: "choice" });
    this.turns = h("div", { class: "turns" });
    this.toEnd = h("button", { type: "button", class: "icon to-end", hidden: true, "aria-label": "To the end", onclick: () => this.scrollToEnd() }, icon("down"));
    this.scroller = h("div", { class: "scroller", tabindex: "-1" }, this.turns);
    this.scroller.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    this.status = h("div", { class: "visually-hidden", role: "status", "aria-live": "polite" });
    const sideButton = tool("list", "Conversations", () => this.showSide(!this.side.classList.contains("open")));
    sideButton.setAttribute("aria-controls", "conversations");
    sideButton.classList.add("side-button");
    root.append(
      this.side,
      h("div", { class: "shade", onclick: () => this.showSide(false) }),
      h(
        "div",
        { class: "talk" },
        h("div", { class: "head" }, sideButton, this.choice, tool("plus", "New chat", () => this.open())),
        this.scroller,
        h("div", { class: "dock" }, this.toEnd, this.buildComposer()),
        this.status,
      ),
    );
  }

  /** Takes conversations back that were exported as JSON. */
  buildImport() {
    const files = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "A conversation as JSON" });
    files.addEventListener("change", async () => {
      const [file] = files.files;
      files.value = ""; // so that the same one can be chosen again
      const conversation = file.size <= LARGEST_IMPORT ? store.adopt(await file.text()) : null;
      if (conversation) this.open(conversation.id);
      else toast(`${file.name} is no conversation that was exported here as JSON`);
    });
    return h("div", {}, h("button", { type: "button", class: "plain small muted", onclick: () => files.click() }, "Import a conversation"), files);
  }

  buildComposer() {
    this.input = h("textarea", { rows: 1, placeholder: "Ask something", "aria-label": "Message", enterkeyhint: "send" });
    this.input.addEventListener("input", () => this.fitInput());
    this.input.addEventListener("keydown", (event) => {
      if (!sends(event)) return;
      event.preventDefault();
      this.submit();
    });
    this.think = h("button", { type: "button", class: "think", onclick: () => this.toggleThinking() });
    this.send = h("button", { type: "button", class: "icon primary send", onclick: () => (this.isBusy() ? this.stopAll() : this.submit()) });
    this.showThinking();
    this.showSend();
    return h(
      "div",
      { class: "composer", onclick: (event) => event.target === event.currentTarget && this.input.focus() },
      this.input,
      h(
        "div",
        { class: "row" },
        this.think,
        tool("sliders", "Settings", () => openSettings(store, () => this.showThinking())),
        h("span", { class: "end" }),
        this.send,
      ),
    );
  }

  /** Shows a conversation, or a new one. */
  open(id, query = new URLSearchParams()) {
    const asked = query.getAll("model").filter((model) => this.models.has(model)).slice(0, MOST_MODELS);
    this.conversation = store.get(id) ?? store.create(asked.length > 0 ? asked : this.models.first());
    this.sticks = true;
    this.showSide(false);
    this.showConversation();
    this.focusInput();
  }

  showConversation() {
    const { conversation } = this;
    remember("chat", store.get(conversation.id) ? [conversation.id] : []);
    this.leaveTurns?.abort();
    this.leaveTurns = new AbortController();
    const signal = AbortSignal.any([this.signal, this.leaveTurns.signal]);
    const last = conversation.turns.at(-1);
    const views = conversation.turns.map((turn) => turnView(turn, turn === last, this.actions(), signal));
    fill(this.turns, last ? views : this.welcome());
    this.turns.dataset.columns = last?.columns.length ?? 1;
    this.showChoice();
    this.showList();
    this.showSend();
    if (last && this.sticks) this.scrollToEnd();
  }

  /** Another window has changed a conversation, perhaps this one. */
  follow() {
    this.conversation = store.get(this.conversation.id) ?? this.conversation;
    this.showConversation();
  }

  /** Puts the cursor where the next message is written; on a phone this would raise the keyboard. */
  focusInput() {
    if (matchMedia("(hover: hover)").matches) this.input.focus();
  }

  actions() {
    const page = this;
    return {
      edit: (turn, text) => this.edit(turn, text),
      again: (turn, column) => this.again(turn, column),
      grown: () => this.sticks && this.scrollToEnd(),
      ended: (attempt) => this.ended(attempt),
      get openThoughts() {
        return page.settings.openThoughts;
      },
      rememberThoughts: (open) => {
        this.settings.openThoughts = open;
        store.saveSettings();
      },
    };
  }

  welcome() {
    const starters = this.models.starters.map(({ title, note, prompts }) =>
      h(
        "section",
        { class: "starters" },
        h("h3", {}, title, h("span", { class: "muted small" }, note)),
        h("div", { class: "cards" }, prompts.map((one) =>
          h("button", { type: "button", class: "starter", onclick: () => this.ask(one.prompt) }, h("b", {}, one.title), h("span", {}, one.prompt)))),
      ),
    );
    const lineups = this.models.lineups.map(({ title, models }) =>
      h("button", { type: "button", onclick: () => this.choose(models) }, icon("columns"), title));
    return h(
      "div",
      { class: "welcome" },
      h("h1", {}, "What shall we think about?"),
      lineups.length > 0 && h("div", { class: "row lineups" }, lineups),
      starters,
    );
  }

  showChoice() {
    const { models } = this.conversation;
    const replace = (place, id) => this.choose(id === null ? models.toSpliced(place, 1) : models.toSpliced(place, 1, id));
    const selects = models.map((id, place) =>
      h(
        "span",
        { class: "chosen" },
        modelSelect(this.models, id, `Model ${place + 1}`, (other) => replace(place, other)),
        models.length > 1 && tool("close", `Without ${modelName(id)}`, () => replace(place, null)),
      ),
    );
    const add = h("button", { type: "button", class: "plain compare", title: "Another model beside it", onclick: () => this.addModel() }, icon("columns"), h("span", {}, "Compare"));
    fill(this.choice, selects, models.length < MOST_MODELS && add);
  }

  addModel() {
    const { models } = this.conversation;
    const lineup = this.models.lineups.find((one) => one.models.some((id) => models.includes(id)));
    const others = [...(lineup?.models ?? []), ...this.models.served].filter((id) => !models.includes(id));
    this.choose([...models, others[0] ?? models[0]]);
  }

  choose(models) {
    this.conversation.models = models;
    this.settings.models = models;
    store.saveSettings();
    if (store.get(this.conversation.id)) store.save(this.conversation);
    this.showChoice();
  }

  toggleThinking() {
    this.settings.thinks = !this.settings.thinks;
    store.saveSettings();
    this.showThinking();
  }

  showThinking() {
    const { thinks, budget } = this.settings;
    this.think.setAttribute("aria-pressed", thinks);
    this.think.title = thinks ? "It thinks first, then answers" : "It answers at once";
    fill(this.think, icon("thought"), budget !== null && thinks ? `DeepThink · ${budget}` : "DeepThink");
  }

  showSend() {
    const busy = this.isBusy();
    this.send.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.send.title = busy ? "Stop (Esc)" : "Send (Enter)";
    fill(this.send, icon(busy ? "stop" : "send"));
  }

  fitInput() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  // --- the reader's place --------------------------------------------------------------------------------------------

  noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.sticks = scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PX;
    this.toEnd.hidden = this.sticks;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.noteScroll();
  }

  // --- talking -------------------------------------------------------------------------------------------------------

  submit() {
    const text = this.input.value.trim();
    if (!text || this.isBusy()) return;
    this.input.value = "";
    this.fitInput();
    this.ask(text);
  }

  ask(user) {
    const { conversation } = this;
    conversation.title ||= user.replace(/\s+/g, " ").slice(0, LONGEST_TITLE);
    const turn = { user, columns: conversation.models.map((model) => ({ model, shown: 0, attempts: [] })) };
    conversation.turns.push(turn);
    this.start(turn, turn.columns);
  }

  edit(turn, text) {
    const { turns } = this.conversation;
    turns.slice(turns.indexOf(turn)).forEach(stopTurn);
    turns.length = turns.indexOf(turn);
    this.ask(text);
  }

  again(turn, column) {
    this.start(turn, [column]);
  }

  start(turn, columns) {
    const { conversation } = this;
    conversation.updated = Date.now();
    store.save(conversation);
    for (const column of columns) begin(store, conversation, turn, column, this.models.target(column.model, this.settings));
    this.status.textContent = "Waiting for the reply";
    this.sticks = true;
    this.showConversation();
    this.focusInput(); // the button that was pressed is gone
  }

  ended(attempt) {
    this.status.textContent = attempt.error ?? `Reply: ${attempt.answer.slice(0, 1000) || "none"}`;
    this.showSend();
    if (this.sticks) requestAnimationFrame(() => this.scrollToEnd());
  }

  isBusy() {
    return this.conversation?.turns.at(-1)?.columns.some(({ attempts }) => attempts.some(isRunning)) ?? false;
  }

  stopAll() {
    this.conversation.turns.forEach(stopTurn);
  }

  /** Esc closes what lies on top, which a dialog and a menu do by themselves, else it stops the reply. */
  escape() {
    if (document.querySelector("dialog[open], :popover-open")) return;
    if (this.side.classList.contains("open")) this.showSide(false);
    else this.stopAll();
  }

  // --- conversations -------------------------------------------------------------------------------------------------

  showSide(open) {
    this.side.classList.toggle("open", open);
    if (open) this.side.querySelector("button").focus();
  }

  showList() {
    const items = store.list().map((conversation) => this.listItem(conversation));
    fill(this.list, items.length > 0 ? items : h("li", { class: "muted small none" }, "Conversations stay in this browser."));
  }

  listItem(conversation) {
    const isOpen = conversation === this.conversation;
    const title = conversation.title || "Conversation";
    const item = h("li", { class: isOpen ? "open" : null });
    const act = (action) => () => (menu.hidePopover(), action());
    let sure = false;
    const remove = h("button", { type: "button", class: "bad", onclick: () => {
      if (sure) return act(() => this.remove(conversation))();
      sure = true;
      remove.textContent = "Really delete?";
      return undefined;
    } }, "Delete");
    const menu = h(
      "div",
      { popover: "auto", class: "menu" },
      h("button", { type: "button", onclick: act(() => this.rename(conversation, item)) }, "Rename"),
      h("button", { type: "button", onclick: act(() => download(fileName(conversation, "md"), asMarkdown(conversation), "text/markdown")) }, "Export Markdown"),
      h("button", { type: "button", onclick: act(() => download(fileName(conversation, "json"), JSON.stringify(conversation, null, 2), "application/json")) }, "Export JSON"),
      remove,
    );
    const more = tool("more", `More of ${title}`, () => {
      menu.showPopover();
      place(menu, more);
      menu.firstChild.focus();
    });
    const open = () => this.open(conversation.id);
    item.append(h("button", { type: "button", class: "title", "aria-current": isOpen ? "true" : null, onclick: open }, title), more, menu);
    return item;
  }

  rename(conversation, item) {
    const input = h("input", { "aria-label": "Name of the conversation", maxlength: LONGEST_TITLE });
    input.value = conversation.title;
    const end = (keep) => {
      if (keep && input.value.trim()) {
        conversation.title = input.value.trim();
        store.save(conversation);
      }
      this.showList();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") event.preventDefault(); // it ends the renaming, and nothing else
      if (event.key === "Escape" || event.key === "Enter") end(event.key === "Enter");
    });
    input.addEventListener("change", () => end(true));
    fill(item, input);
    input.select();
  }

  remove(conversation) {
    conversation.turns.forEach(stopTurn);
    store.remove(conversation.id);
    if (conversation === this.conversation) this.open();
    else this.showList();
  }
}

function stopTurn(turn) {
  turn.columns.flatMap(({ attempts }) => attempts).forEach(stop);
}

function place(menu, button) {
  const { right, bottom, top } = button.getBoundingClientRect();
  const below = bottom + menu.offsetHeight < innerHeight;
  menu.style.left = `${Math.max(8, Math.min(right, innerWidth - 8) - menu.offsetWidth)}px`;
  menu.style.top = `${below ? bottom + 4 : top - menu.offsetHeight - 4}px`;
}
