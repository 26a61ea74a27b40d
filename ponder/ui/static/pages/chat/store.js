// Conversations and settings, kept in this browser only.
//
// A conversation: {id, title, created, updated, models, turns}; a turn: {user, columns}, one column a model; a column:
// {model, shown, attempts}; an attempt: {thinking, answer, state, thinkingMs, error, usage}. Each conversation has an entry
// of its own, so that two windows do not overwrite each other's. Storage may be full, forbidden or hold nonsense: what
// cannot be read is left alone, what cannot be written stays in memory, and `onFull` is told once.

const PREFIX = "ponder.chat.";
const SETTINGS = "ponder.chatsettings";
const STATES = ["done", "length", "stopped", "failed", "interrupted"];

export const DEFAULTS = {
  models: [],
  thinks: true,
  openThoughts: false,
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  budget: null,
  endpoints: [],
};

export class Store {
  #storage;
  #conversations = new Map();
  #onFull;
  #toldFull = false;

  constructor(storage = browserStorage(), onFull = () => {}) {
    this.#storage = storage;
    this.#onFull = onFull;
    for (const key of keys(storage)) this.#read(key);
    this.settings = { ...DEFAULTS, ...matching(parsed(get(storage, SETTINGS)), DEFAULTS) };
  }

  /** All conversations, the latest first. */
  list() {
    return [...this.#conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.#conversations.get(id);
  }

  /** A conversation without turns; it is kept once it is saved. */
  create(models) {
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, models, turns: [] };
  }

  /** Keeps a conversation as it is now. */
  save(conversation) {
    this.#conversations.set(conversation.id, conversation);
    this.#write(PREFIX + conversation.id, conversation);
  }

  /** Keeps a conversation that was exported as JSON, beside one that has its id; returns it, or null for what is none. */
  adopt(json) {
    const conversation = readConversation(parsed(json));
    if (!conversation) return null;
    if (this.get(conversation.id)) conversation.id = newId();
    conversation.updated = Date.now();
    this.save(conversation);
    return conversation;
  }

  remove(id) {
    this.#conversations.delete(id);
    this.#toldFull = false;
    try {
      this.#storage.removeItem(PREFIX + id);
    } catch {
      // a storage that is forbidden holds nothing
    }
  }

  saveSettings() {
    this.#write(SETTINGS, this.settings);
  }

  /** Another window wrote `key`; true when that changed a conversation. */
  refresh(key) {
    if (!key?.startsWith(PREFIX)) return false;
    this.#conversations.delete(key.slice(PREFIX.length));
    this.#read(key);
    return true;
  }

  #read(key) {
    if (!key.startsWith(PREFIX)) return;
    const conversation = readConversation(parsed(get(this.#storage, key)));
    if (conversation && PREFIX + conversation.id === key) this.#conversations.set(conversation.id, conversation);
  }

  #write(key, value) {
    try {
      this.#storage.setItem(key, JSON.stringify(value));
    } catch {
      if (!this.#toldFull) this.#onFull();
      this.#toldFull = true;
    }
  }
}

/** An attempt at a reply, about to begin. */
export function newAttempt() {
  return { thinking: "", answer: "", state: "running", thinkingMs: null, error: null, usage: null };
}

/** The attempt that a column shows. */
export function shownAttempt(column) {
  return column.attempts[column.shown];
}

/** A conversation as it was stored, made whole; null when it is none. */
export function readConversation(value) {
  if (!isObject(value) || typeof value.id !== "string" || !Array.isArray(value.turns)) return null;
  const turns = value.turns.map(readTurn);
  if (turns.includes(null)) return null;
  return {
    id: value.id,
    title: text(value.title),
    created: number(value.created) ?? 0,
    updated: number(value.updated) ?? 0,
    models: strings(value.models),
    turns,
  };
}

function readTurn(value) {
  if (!isObject(value) || typeof value.user !== "string" || !Array.isArray(value.columns)) return null;
  const columns = value.columns.map(readColumn);
  return columns.length === 0 || columns.includes(null) ? null : { user: value.user, columns };
}

function readColumn(value) {
  if (!isObject(value) || typeof value.model !== "string" || !Array.isArray(value.attempts)) return null;
  const attempts = value.attempts.filter(isObject).map(readAttempt);
  if (attempts.length === 0) return null;
  const shown = attempts[value.shown] ? value.shown : attempts.length - 1;
  return { model: value.model, shown, attempts };
}

function readAttempt(value) {
  return {
    thinking: text(value.thinking),
    answer: text(value.answer),
    state: STATES.includes(value.state) ? value.state : "interrupted", // it was running when the page went away
    thinkingMs: number(value.thinkingMs),
    error: typeof value.error === "string" ? value.error : null,
    usage: isObject(value.usage) ? { tokens: number(value.usage.tokens), thinking: number(value.usage.thinking) } : null,
  };
}

/** Of a stored object, what has the type that the defaults have; numbers may be null. */
function matching(value, defaults) {
  if (!isObject(value)) return {};
  const fits = ([name, fallback]) =>
    fallback === null ? number(value[name]) !== null
    : Array.isArray(fallback) ? Array.isArray(value[name])
    : typeof value[name] === typeof fallback;
  return Object.fromEntries(Object.entries(defaults).filter(fits).map(([name]) => [name, value[name]]));
}

function browserStorage() {
  try {
    return localStorage;
  } catch {
    return new Map(); // forbidden: its missing methods throw where they are called, and that is dealt with there
  }
}

function keys(storage) {
  try {
    return Array.from({ length: storage.length ?? 0 }, (_, index) => storage.key(index));
  } catch {
    return [];
  }
}

function get(storage, key) {
  try {
    return storage.getItem(key);
  } catch {
    return null;
  }
}

function parsed(json) {
  try {
    return JSON.parse(json ?? "null");
  } catch {
    return null;
  }
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);
const strings = (value) => (Array.isArray(value) ? value.filter((one) => typeof one === "string") : []);
