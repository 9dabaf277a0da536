// All of the page but the focal plane: the verdict, what is wrong, gauges, visits, errors.

import { KINDS, bytes, clock, command, kindOf, kindOfState, make, missed, moment, span } from "./words.js";

const $ = (id) => document.getElementById(id);
const SIGNS = { ok: "✓", idle: "–", paused: "‖", warning: "!", trouble: "✕", none: "…" };
const MAX_GROUPS = 6;
const MAX_LINKS = 16;
// Who fails so often in the last visits will fail again.
const OFTEN = 3;

// Write only what has changed: a screen reader must not lose its place each second.
function show(element, value, build) {
  const key = JSON.stringify(value);
  if (element.dataset.shown === key) return;
  element.dataset.shown = key;
  element.replaceChildren(...build(value));
}

export function showVerdict(picture, now) {
  const { level, words, detail, since } = picture.verdict;
  $("verdict").dataset.level = level;
  document.querySelector("#verdict .sign").textContent = SIGNS[level];
  document.querySelector("#verdict .words").textContent = detail || since ? `${words}:` : words;
  const last = since == null ? "" : `last export ${span(now - since)} ago`;
  document.querySelector("#verdict .detail").textContent = [last, detail].filter(Boolean).join("; ");
  const { instrument, deployment, pid, started } = picture.head;
  $("head").textContent = `${instrument} · up ${span(now - started)} · ${deployment} · pid ${pid}`;
  document.title = `${SIGNS[level]} ${words} – ppd ${instrument}`;
}

// In words, for who can't see the picture; said when it has changed.
export function summary(picture) {
  const counts = countKinds(picture.detectors, Object.keys(picture.detectors));
  const states = Object.entries(counts).filter(([kind]) => kind !== "none");
  const said = states.map(([kind, n]) => `${n} ${KINDS[kind].short}`).join(", ");
  return `${picture.verdict.words}. ${picture.verdict.detail}. Detectors: ${said || "none has a visit"}.`;
}

function countKinds(entries, ids) {
  const counts = {};
  for (const id of ids) {
    const kind = kindOf(entries[id]);
    counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return counts;
}

export function showLegend(picture, ids, steps) {
  const counts = countKinds(picture.detectors, ids);
  const lines = steps
    ? steps.map(([kind, words]) => [kind, "", words])
    : Object.entries(KINDS).map(([kind, k]) => [kind, k.sign, `${k.short ?? k.word} ${counts[kind] ?? 0}`]);
  show($("legend"), lines, () =>
    lines.map(([kind, sign, words]) =>
      make("li", {}, make("span", { class: "swatch", "data-kind": kind, "aria-hidden": "true" }, sign), words),
    ),
  );
}

export function showTrouble(picture, name, choose) {
  show($("faults"), picture.faults, (faults) =>
    faults.map((f) =>
      make("li", { class: "fault" }, make("b", {}, f.text), make("p", {}, f.meaning), make("p", {}, "Do: ", command(f.command))),
    ),
  );
  const groups = troubles(picture.detectors);
  const calm = picture.faults.length || groups.length ? [] : ["Nothing is wrong that ppd knows of."];
  show($("troubled"), [groups, calm], () => [
    ...calm.map((text) => make("li", { class: "calm" }, text)),
    ...groups.slice(0, MAX_GROUPS).map((g) => troubleLine(g, name, choose)),
    ...(groups.length > MAX_GROUPS ? [make("li", {}, `and ${groups.length - MAX_GROUPS} more reasons`)] : []),
  ]);
}

// What is the same but for its numbers is told once, for all its detectors; the most failures first.
function troubles(entries) {
  const groups = new Map();
  for (const [id, e] of Object.entries(entries)) {
    const [kind, reason] = e.failed ? ["failed", e.failed_reason] : e.paused ? ["paused", e.paused] : missed(e) ? [e.alerts, ""] : [];
    if (!kind) continue;
    const key = `${kind} ${reason.replace(/\d+/g, "#")}`;
    const group = groups.get(key) ?? { kind, reason, group: e.failed_group, first: id, often: [], ids: [], failures: 0 };
    group.ids.push(Number(id));
    group.failures += e.failed ?? 0;
    if (e.failed >= OFTEN) group.often.push(Number(id));
    groups.set(key, group);
  }
  const order = ["failed", "expected_late", "late", "paused"];
  return [...groups.values()].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || b.failures - a.failures);
}

function troubleLine({ kind, reason, group, first, often, ids, failures }, name, choose) {
  const one = ids.length === 1;
  const said = {
    failed: one ? `failed ${failures === 1 ? "once" : `${failures} times`} in the last visits` : "failed in the last visits",
    expected_late: one ? "is late: its alerts will miss the deadline" : "are late: their alerts will miss the deadline",
    late: one ? "was late: its alerts have missed the deadline" : "were late: their alerts have missed the deadline",
    paused: one ? "takes no visits" : "take no visits",
  }[kind];
  const links = ids.slice(0, MAX_LINKS).flatMap((id) => [
    make("button", { type: "button", class: "link", onclick: () => choose(id) }, one ? `${id} ${name(id) ?? ""}` : `${id}`),
    " ",
  ]);
  return make(
    "li",
    { class: kind === "failed" ? "fault" : "note" },
    make("b", {}, one ? "Detector " : `${ids.length} detectors `),
    one && links[0],
    ` ${said}`,
    reason && make("p", { class: "reason" }, reason),
    !one && make("p", {}, ...links, ids.length > MAX_LINKS ? `and ${ids.length - MAX_LINKS} more` : ""),
    kind === "failed" && make("p", {}, "See: ", command(`ppdctl show ${group} ${first}`), " ", command(`ppdctl logs ${group} ${first}`)),
    often.length > 0 && make("p", {}, "It goes on; to do without: ", command(`ppdctl pause --detectors ${often.join(",")} --reason "…"`)),
    kind === "paused" && make("p", {}, "When all is well: ", command(`ppdctl resume --detectors ${ids.join(",")}`)),
  );
}

export function showVisits(picture) {
  const rows = picture.visits.slice().reverse();
  show(document.querySelector("#visits tbody"), rows, () =>
    rows.length ? rows.map((v) => visitRow(v)) : [make("tr", {}, make("td", { colspan: 4 }, "No visit has come yet."))],
  );
}

function visitRow(v) {
  const counts = {};
  for (const [state, n] of Object.entries(v.states)) counts[kindOfState(state)] = (counts[kindOfState(state)] ?? 0) + n;
  const order = Object.keys(KINDS).filter((kind) => counts[kind]).reverse();
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  for (const kind of order) {
    const part = make("span", { "data-kind": kind }, KINDS[kind].sign);
    part.style.flexGrow = counts[kind];
    bar.append(part);
  }
  const words = order.map((kind) => `${counts[kind]} ${KINDS[kind].short}`).join(", ");
  const late = [["late", "late"], ["expected_late", "will be late"]]
    .filter(([kind]) => v.alerts[kind])
    .map(([kind, said]) => `${v.alerts[kind]} ${said}`)
    .join(", ");
  return make(
    "tr",
    {},
    make("td", {}, clock(v.accepted)),
    make("th", { scope: "row" }, v.group, v.filter && make("small", {}, ` ${v.filter}`)),
    make("td", { class: "states" }, bar, make("small", {}, words, late && make("b", { class: "late" }, ` ⚑ ${late}`))),
    make("td", {}, v.slowest == null ? "–" : `${Math.round(v.slowest)} s`),
  );
}

export function showGauges(picture) {
  const g = picture.gauges;
  const rows = [
    ["Spool", g.spool, `${bytes(g.spool.used)} of ${bytes(g.spool.total)}, waiting for export: ${g.spool.entries}`],
    ["Cache", g.cache, `${bytes(g.cache.used)} of ${bytes(g.cache.total)}, ${g.cache.entries} inputs`],
    ["Slots", g.slots, `${g.slots.used} of ${g.slots.total} children alive`],
    ["Processors", g.processors, `${g.processors.used} of ${g.processors.total} at work, children waiting: ${g.processors.queued}`],
  ];
  // Full slots and processors are work; a full spool or none of it left is trouble.
  show($("gauges"), [rows, g.dead_letters, g.raws_waiting], () => [
    ...rows.map(([name, { used, total }, text]) => gauge(name, total ? used / total : 0, text, name === "Spool")),
    make("p", {}, `Raws without a visit: ${g.raws_waiting}. Dead letters: ${g.dead_letters}.`),
  ]);
}

function gauge(name, share, text, matters) {
  const percent = Math.min(100, Math.round(100 * share));
  const fill = make("span", {});
  fill.style.width = `${percent}%`;
  const level = matters && share > 0.8 ? "trouble" : matters && share > 0.5 ? "warning" : "ok";
  return make(
    "div",
    { class: "gauge" },
    make("span", { class: "gauge-name" }, name),
    make(
      "div",
      { class: "meter", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": percent, "aria-valuetext": text, "data-level": level },
      fill,
    ),
    make("span", { class: "gauge-text" }, text),
  );
}

export function showErrors(picture) {
  const errors = picture.errors.slice().reverse();
  show($("errors"), errors, () =>
    errors.length
      ? errors.map((e) =>
          make(
            "li",
            {},
            make("time", { datetime: new Date(e.time * 1000).toISOString(), title: `${moment(e.time)} UTC` }, clock(e.time)),
            " ",
            make("b", {}, e.kind.replaceAll("_", " ")),
            ` ${e.what}: ${e.message}`,
          ),
        )
      : [make("li", { class: "calm" }, "None since the start.")],
  );
}
