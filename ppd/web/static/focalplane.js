// The focal plane: each detector where it lies, coloured by what it is at.

import { ALERTS, KINDS, kindOf, missed, secondsSinceRaw, span, whatItDoes } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
// Shares of the alert deadline at which the colour changes.
const STEPS = [0.25, 0.5, 0.75, 1];

function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function makeFocalPlane(svg, hover, chosen) {
  const places = new Map();
  let byState = true;
  let current = null;
  let label = () => "";

  function setGeometry(detectors) {
    const xs = detectors.flatMap((d) => d.corners.map((c) => c[0]));
    const ys = detectors.flatMap((d) => d.corners.map((c) => -c[1]));
    const [x, y] = [Math.min(...xs), Math.min(...ys)];
    const [width, height] = [Math.max(...xs) - x, Math.max(...ys) - y];
    const rim = 0.012 * Math.max(width, height);
    svg.setAttribute("viewBox", `${x - rim} ${y - rim} ${width + 2 * rim} ${height + 2 * rim}`);
    svg.replaceChildren(patterns(detectors));
    svg.classList.toggle("many", detectors.length > 30);
    for (const d of detectors) place(d);
    const first = detectors[Math.floor(detectors.length / 2)];
    if (first) roam(first.id);
  }

  // Patterns in units of a detector's side, so that they look the same in each camera.
  function patterns(detectors) {
    const side = sideOf(detectors[0]);
    const u = side / 5;
    const line = (d) => draw("path", { d, class: "pattern", "stroke-width": u / 6 });
    const box = { width: u, height: u, patternUnits: "userSpaceOnUse" };
    return draw(
      "defs",
      {},
      draw("pattern", { id: "crossed", ...box }, line(`M0 0L${u} ${u}M0 ${u}L${u} 0`)),
      draw("pattern", { id: "striped", ...box }, line(`M0 ${u}L${u} 0`)),
    );
  }

  function sideOf(d) {
    const xs = d.corners.map((c) => c[0]);
    return Math.max(...xs) - Math.min(...xs);
  }

  function place(d) {
    const points = d.corners.map(([x, y]) => `${x},${-y}`).join(" ");
    const cx = d.corners.reduce((s, c) => s + c[0], 0) / d.corners.length;
    const cy = -d.corners.reduce((s, c) => s + c[1], 0) / d.corners.length;
    const side = sideOf(d);
    const few = !isMany();
    const sign = draw("text", { x: cx, y: cy - (few ? side * 0.1 : 0), class: "sign", "font-size": signSize(side) });
    const info = draw("text", { x: cx, y: cy + side * 0.24, class: "info", "font-size": side * 0.095 });
    const name = draw("text", { x: cx, y: cy + side * 0.41, class: "name", "font-size": side * 0.11 }, `${d.id} ${d.name}`);
    const corner = [
      [cx + side * 0.22, cy - side * 0.5],
      [cx + side * 0.5, cy - side * 0.5],
      [cx + side * 0.5, cy - side * 0.22],
    ];
    const mark = draw("polygon", { points: corner.map((p) => p.join(",")).join(" "), class: "mark" });
    const g = draw(
      "g",
      { class: "detector", role: "button", tabindex: -1, "data-id": d.id },
      draw("polygon", { points, class: "area" }),
      draw("polygon", { points, class: "texture" }),
      sign,
      info,
      name,
      mark,
    );
    g.addEventListener("click", () => choose(d.id));
    g.addEventListener("focus", () => tell(d.id));
    g.addEventListener("mouseenter", () => tell(d.id));
    g.addEventListener("keydown", (e) => key(e, d.id));
    svg.append(g);
    places.set(d.id, { shape: d, side, g, sign, info, cx, cy });
  }

  const isMany = () => svg.classList.contains("many");
  // Numbers take more room than signs.
  const signSize = (side) => side * (isMany() ? 0.46 : 0.3) * (byState ? 1 : 0.85);

  function choose(id) {
    roam(id);
    chosen(id);
  }

  function tell(id) {
    hover.textContent = label(id);
  }

  // One of them is in the order of the tab key; arrows go to the others.
  function roam(id) {
    if (current != null) places.get(current)?.g.setAttribute("tabindex", -1);
    current = id;
    places.get(id).g.setAttribute("tabindex", 0);
  }

  function key(e, id) {
    if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      return choose(id);
    }
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!way) return undefined;
    e.preventDefault();
    const next = neighbour(places.get(id), way);
    if (next) {
      roam(next.shape.id);
      next.g.focus();
    }
    return undefined;
  }

  function neighbour(from, [wx, wy]) {
    let best = null;
    let least = Infinity;
    for (const to of places.values()) {
      const [dx, dy] = [to.cx - from.cx, to.cy - from.cy];
      const along = dx * wx + dy * wy;
      const aside = Math.abs(dx * wy) + Math.abs(dy * wx);
      if (along > 1e-6 && aside <= along && along + 2 * aside < least) {
        least = along + 2 * aside;
        best = to;
      }
    }
    return best;
  }

  function paint(entries, deadline, now) {
    label = (id) => {
      const { shape } = places.get(id);
      return describe(shape, entries[id], now);
    };
    for (const [id, p] of places) {
      const entry = entries[id];
      const kind = kindOf(entry);
      const seconds = secondsSinceRaw(entry, now);
      p.g.dataset.kind = byState ? kind : step(seconds, deadline);
      p.g.classList.toggle("late", missed(entry));
      p.g.classList.toggle("failed-before", Boolean(entry?.failed) && kind !== "failed");
      p.sign.textContent = byState ? KINDS[kind].sign : seconds == null ? "" : `${Math.round(seconds)}${isMany() ? "" : " s"}`;
      p.info.textContent = entry?.since && kind !== "none" && kind !== "paused" ? `${KINDS[kind].short} ${sinceWhen(entry, now)}` : "";
      p.g.setAttribute("aria-label", label(id));
    }
  }

  return {
    setGeometry,
    paint,
    name: (id) => places.get(id)?.shape.name,
    has: (id) => places.has(id),
    focus: (id) => places.get(id)?.g.focus(),
    mark: (id) => places.forEach((p, other) => p.g.classList.toggle("chosen", other === id)),
    colours: (what) => {
      byState = what === "state";
      svg.classList.toggle("by-seconds", !byState);
      for (const p of places.values()) p.sign.setAttribute("font-size", signSize(p.side));
    },
    get byState() {
      return byState;
    },
  };
}

export function step(seconds, deadline) {
  if (seconds == null) return "step-none";
  const i = STEPS.findIndex((share) => seconds <= share * deadline);
  return i < 0 ? "step-over" : `step-${i}`;
}

// The legend of the colours by seconds: class and words of each.
export function steps(deadline) {
  const ends = STEPS.map((share) => Math.round(share * deadline));
  const named = ends.map((end, i) => [`step-${i}`, `${i ? ends[i - 1] : 0} to ${end} s`]);
  return [...named, ["step-over", `more than ${ends.at(-1)} s`], ["step-none", "no raw yet"]];
}

const sinceWhen = (entry, now) => {
  const over = entry.state === "exported" || entry.state === "failed";
  return span(now - entry.since) + (over ? " ago" : "");
};

export function describe(shape, entry, now) {
  const parts = [`detector ${shape.id} ${shape.name}: ${whatItDoes(entry)}`];
  if (entry?.since) parts.push(sinceWhen(entry, now));
  const seconds = secondsSinceRaw(entry, now);
  if (seconds != null) parts.push(`${Math.round(seconds)} s ${entry.state === "exported" ? "from raw to export" : "since its raw"}`);
  if (entry?.alerts) parts.push(ALERTS[entry.alerts]);
  if (entry?.attempt) parts.push(`attempt ${entry.attempt}`);
  if (entry?.state === "failed" && entry.reason) parts.push(entry.reason);
  else if (entry?.failed) parts.push(`failed in ${entry.failed} of the last visits`);
  return parts.join(", ");
}
