// One detector: its last visits, and of one of them events, inputs and log.

import { KINDS, command, kindOfState, make } from "./words.js";

const LAST_MS = 15000;

export function makePanel(panel, { name, closed, steering }) {
  let id = null;
  let group = null;
  let asked = 0;
  let token = "";

  async function get(path) {
    const answer = await fetch(path, { signal: AbortSignal.timeout(LAST_MS) });
    if (!answer.ok) throw new Error((await answer.text()).trim() || `HTTP ${answer.status}`);
    return answer.json();
  }

  // Fill a part of the panel when its answer comes, unless something else was asked for meanwhile.
  async function fill(part, path, build, after = () => {}) {
    const mine = asked;
    part.replaceChildren(make("p", { class: "calm" }, "…"));
    try {
      const found = await get(path);
      if (mine !== asked) return;
      part.replaceChildren(...build(found));
      after(found);
    } catch (e) {
      if (mine === asked) part.replaceChildren(make("p", { class: "calm" }, String(e.message || e)));
    }
  }

  function open(detector) {
    id = detector;
    group = null;
    asked += 1;
    const visits = make("div", { id: "panel-visits" });
    panel.replaceChildren(
      make(
        "div",
        { class: "title" },
        make("h2", { id: "panel-title", tabindex: -1 }, `Detector ${id} ${name(id) ?? ""}`),
        make("button", { type: "button", id: "panel-close", "aria-label": "Close", onclick: close }, "✕"),
      ),
      make("p", { id: "panel-now" }),
      make("h3", {}, "Its last visits"),
      visits,
      make("div", { id: "panel-visit" }),
      ...(steering() ? [steer()] : []),
    );
    panel.hidden = false;
    document.getElementById("panel-title").focus();
    const none = () => [make("p", { class: "calm" }, "No visit with it is in the journal.")];
    fill(
      visits,
      `/api/detector/${id}`,
      (found) => (found.visits.length ? [visitList(found.visits)] : none()),
      (found) => found.visits.length && choose(found.visits[0].group),
    );
  }

  function visitList(visits) {
    return make(
      "ul",
      { class: "plain-list chooser" },
      ...visits.map((v) => {
        const kind = kindOfState(v.state);
        return make(
          "li",
          {},
          make(
            "button",
            { type: "button", "data-group": v.group, "aria-pressed": "false", onclick: () => choose(v.group) },
            make("span", { class: "swatch", "data-kind": kind, "aria-hidden": "true" }, KINDS[kind].sign),
            ` ${v.group} `,
            make("small", {}, `${v.filter} ${v.state.replace("_", " ")}${v.again ? ", more than one attempt" : ""}`),
            v.reason && make("span", { class: "reason" }, v.reason),
          ),
        );
      }),
    );
  }

  function choose(chosen) {
    group = chosen;
    asked += 1;
    for (const b of panel.querySelectorAll("[data-group]")) b.setAttribute("aria-pressed", b.dataset.group === group);
    const [events, log] = [make("div", { id: "panel-events" }), make("div", { id: "panel-log" })];
    document.getElementById("panel-visit").replaceChildren(make("h3", {}, `Visit ${group}`), events, make("h3", {}, "Log"), log);
    const path = `${encodeURIComponent(group)}/${id}`;
    fill(events, `/api/visits/${path}`, (found) => history(found));
    fill(log, `/api/logs/${path}`, (found) => [
      make("p", { class: "calm" }, `attempt ${found.attempt}, ${found.file}${found.cut ? ", its end" : ""}`),
      make("pre", { tabindex: 0, "aria-label": "Log" }, found.text || "(empty)"),
    ]);
  }

  function history(found) {
    const parts = [];
    if (found.line.reason) parts.push(make("p", { class: "reason" }, found.line.reason));
    parts.push(make("p", {}, command(`ppdctl show ${group} ${id}`), " ", command(`ppdctl logs ${group} ${id}`)));
    for (const a of found.attempts) {
      const end = a.ended ? `${a.how} while ${a.phase || "starting"}` : "not seen to end";
      parts.push(make("p", { class: "calm" }, `attempt ${a.number}: process ${a.pid}, ${end}`));
    }
    for (const raw of found.raws) parts.push(make("p", { class: "calm path" }, `raw ${raw}`));
    parts.push(
      make(
        "details",
        { open: true },
        make("summary", {}, "What happened"),
        table(
          ["seconds", "event", "detail"],
          found.happenings.map((h) => [h.seconds.toFixed(1), h.name.replaceAll("_", " "), detail(h.detail)]),
        ),
      ),
      make("details", {}, make("summary", {}, inputsTitle(found.found_inputs)), ...inputs(found.found_inputs)),
      make("p", { class: "calm" }, `${found.datasets} outputs are in central.`),
    );
    return parts;
  }

  const detail = (d) =>
    Object.entries(d)
      .map(([k, v]) => `${k} ${typeof v === "number" && !Number.isInteger(v) ? v.toFixed(2) : typeof v === "object" ? JSON.stringify(v) : v}`)
      .join(", ");

  function inputsTitle(found) {
    if (found.error) return "Inputs";
    const own = found.detectors[id];
    if (!own) return "Inputs: they are being looked for";
    const lacking = Object.keys(own.missing).length;
    return `Inputs: ${own.inputs.length} datasets${lacking ? `, ${lacking} types lacking` : ""}`;
  }

  function inputs(found) {
    if (found.error) return [make("p", { class: "calm" }, found.error)];
    const own = found.detectors[id];
    if (!own) return [];
    return [
      ...Object.entries(own.missing).map(([type, m]) =>
        make("p", { class: m.optional ? "calm" : "reason" }, `lacks ${type} (${m.optional ? "can do without" : "needed"}): ${m.reason}`),
      ),
      table(
        ["type", "data ID", "why"],
        own.inputs.map((i) => [i.type, Object.values(i.data_id).join(" "), i.failure ?? i.why]),
      ),
    ];
  }

  function table(heads, rows) {
    return make(
      "div",
      { class: "scroll", tabindex: 0 },
      make(
        "table",
        {},
        make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", {}, String(text)))))),
      ),
    );
  }

  // With a token only; it is kept nowhere but in this page.
  function steer() {
    const said = make("p", { role: "status" });
    const secret = make("input", { type: "password", autocomplete: "off", value: token, oninput: () => (token = secret.value) });
    const reason = make("input", { type: "text", maxlength: 500 });
    const act = (what) => async () => {
      if (what === "cancel" && !window.confirm(`Cancel detector ${id} of visit ${group}? That can't be undone.`)) return;
      said.textContent = "…";
      const body = { detectors: [id], reason: reason.value, ...(what === "cancel" ? { group } : {}) };
      try {
        const answer = await fetch(`/api/${what}`, {
          method: "POST",
          headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
          body: JSON.stringify(body),
          signal: AbortSignal.timeout(LAST_MS),
        });
        const text = await answer.text();
        said.textContent = answer.ok ? "done" : answer.status === 409 ? JSON.parse(text).error : text;
      } catch (e) {
        said.textContent = String(e.message || e);
      }
    };
    return make(
      "form",
      { class: "steering", onsubmit: (e) => e.preventDefault() },
      make("h3", {}, "Change something"),
      make("label", {}, "Token ", secret),
      make("label", {}, "Reason ", reason),
      ...["pause", "resume", "cancel"].map((what) =>
        make("button", { type: "button", onclick: act(what) }, what === "cancel" ? "cancel in this visit" : what),
      ),
      said,
    );
  }

  function close() {
    const was = id;
    id = null;
    asked += 1;
    panel.hidden = true;
    panel.replaceChildren();
    closed(was);
  }

  panel.addEventListener("keydown", (e) => {
    if (e.key === "Escape") close();
  });

  return {
    open,
    close,
    now(text) {
      const place = document.getElementById("panel-now");
      if (place && place.textContent !== text) place.textContent = text;
    },
    get detector() {
      return id;
    },
  };
}
