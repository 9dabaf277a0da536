// The words, signs and units of the page, and making elements of them.

// How a detector-visit's states look. The colours are Okabe and Ito's; each state has a sign too,
// and those that call for somebody a pattern.
export const KINDS = {
  none: { word: "no visit yet", sign: "" },
  waiting: { word: "waits for inputs or a slot", short: "waiting", sign: "…" },
  preparing: { word: "pre-processes", short: "preparing", sign: "◐" },
  ready: { word: "has its child", short: "ready", sign: "○" },
  running: { word: "runs", short: "running", sign: "▶" },
  handed_over: { word: "in the spool", short: "in spool", sign: "↑" },
  exported: { word: "exported", short: "exported", sign: "✓" },
  failed: { word: "failed", short: "failed", sign: "✕" },
  paused: { word: "paused", short: "paused", sign: "‖" },
};

const OF_STATE = {
  accepted: "waiting",
  waiting: "waiting",
  forked: "ready",
  ready: "ready",
  running: "running",
  handed_over: "handed_over",
  exported: "exported",
  failed: "failed",
};

const PHASES = {
  starting: "starting",
  preprocess: "pre-processing",
  queued_preprocess: "waits for a processor to pre-process",
  waiting_raws: "waits for its raw",
  queued_main: "has its raw, waits for a processor",
  main: "main pipeline",
  handing_over: "hands over its outputs",
  spool_full: "waits for room in the spool",
  looking_back: "looks into a killed attempt",
};

// Whether alerts were in time, by the shutter's close: ppd judges, not the page.
export const ALERTS = {
  on_time: "alerts in time",
  late: "alerts late",
  never: "no alerts",
  not_judged: "alerts not judged",
  expected_late: "alerts will be late",
};

export const missed = (entry) => entry?.alerts === "late" || entry?.alerts === "expected_late";

export const kindOfState = (state) => OF_STATE[state] ?? "none";

// In these it is not its raw or a processor that it waits for.
const PREPARING = new Set(["starting", "preprocess", "looking_back"]);

export function kindOf(entry) {
  if (!entry) return "none";
  const kind = PREPARING.has(entry.phase) && entry.state !== "running" ? "preparing" : kindOfState(entry.state);
  const atWork = kind === "preparing" || kind === "ready" || kind === "running";
  return entry.paused && !atWork ? "paused" : kind;
}

// What it is at, without the time.
export function whatItDoes(entry) {
  const kind = kindOf(entry);
  if (kind === "paused") return entry.paused;
  if (kind === "none") return KINDS.none.word;
  const phase = entry.phase ? PHASES[entry.phase] ?? entry.phase : "";
  if (kind === "running") return `running, ${phase || "main pipeline"}`;
  if (kind === "ready" || kind === "preparing") return phase || KINDS.ready.word;
  if (kind === "waiting") return entry.state === "accepted" ? "its inputs are being found" : "waits for a slot";
  return KINDS[kind].word;
}

// Seconds from the raw to now, or to the end if it is over; null: no raw yet.
export function secondsSinceRaw(entry, now) {
  if (!entry?.raw) return null;
  const over = entry.state === "exported" || entry.state === "failed";
  return Math.max(0, (over ? entry.since : now) - entry.raw);
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i += 1;
  }
  return `${i && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[i]}`;
}

export const clock = (t) => new Date(t * 1000).toISOString().slice(11, 19);
export const moment = (t) => new Date(t * 1000).toISOString().slice(0, 19).replace("T", " ");

// Make an element; what comes from ppd is text, never markup.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((c) => c != null && c !== false));
  return element;
}

export function command(text) {
  return make("code", { class: "command", title: "in a shell on this machine" }, text);
}
