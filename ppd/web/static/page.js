// The status page: hears what ppd tells, and shows it.

import { describe, makeFocalPlane, steps } from "./focalplane.js";
import { showErrors, showGauges, showLegend, showTrouble, showVerdict, showVisits, summary } from "./lists.js";
import { makePanel } from "./panel.js";
import { listen } from "./stream.js";
import { span } from "./words.js";

const $ = (id) => document.getElementById(id);
const SAY_MS = 5000;
const AGAIN_MS = 2000;

let picture = null;
let silent = null;
let steering = false;
let said = 0;
let detectors = [];

const panel = makePanel($("panel"), {
  name: (id) => plane.name(id),
  steering: () => steering,
  closed: (id) => {
    history.replaceState(null, "", location.pathname);
    plane.mark(null);
    plane.focus(id);
  },
});
const plane = makeFocalPlane($("detectors"), $("hover"), choose);

function choose(id) {
  history.replaceState(null, "", `#detector=${id}`);
  plane.mark(id);
  panel.open(id);
  paint();
}

function fromAddress() {
  const id = Number(/^#detector=(\d+)$/.exec(location.hash)?.[1] ?? NaN);
  if (plane.has(id) && panel.detector !== id) choose(id);
}

for (const input of document.getElementsByName("colours")) {
  input.addEventListener("change", () => {
    plane.colours(input.value);
    paint();
  });
}
window.addEventListener("hashchange", fromAddress);

// Without geometry there is nothing to draw: ask until it comes.
async function begin() {
  for (;;) {
    try {
      const answer = await fetch("/api/focal-plane", { signal: AbortSignal.timeout(10000) });
      if (answer.ok) {
        const found = await answer.json();
        ({ detectors, steering } = found);
        plane.setGeometry(detectors);
        break;
      }
    } catch {
      // It is not there; the stream says so.
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  paint();
  fromAddress();
}

const told = {
  picture(whole) {
    // Another camera, or a page of another time, needs another page.
    if (picture && picture.head.instrument !== whole.head.instrument) location.reload();
    picture = whole;
    paint();
  },
  change(some) {
    if (!picture) return;
    const { detectors: changed, ...sections } = some;
    Object.assign(picture, sections);
    for (const [id, entry] of Object.entries(changed ?? {})) {
      if (entry === null) delete picture.detectors[id];
      else picture.detectors[id] = entry;
    }
    paint();
  },
  silence(since) {
    silent = since;
    document.body.classList.toggle("silent", silent !== null || !picture);
    $("silence").hidden = silent === null;
    tick();
  },
};

function paint() {
  if (!picture) return;
  document.body.classList.toggle("silent", silent !== null);
  const ids = detectors.map((d) => String(d.id));
  showTrouble(picture, (id) => plane.name(id), choose);
  showVisits(picture);
  showGauges(picture);
  showErrors(picture);
  showLegend(picture, ids, plane.byState ? null : steps(picture.head.alert_deadline));
  tick();
  const text = summary(picture);
  if (silent === null && text !== $("summary").textContent && Date.now() - said > SAY_MS) {
    said = Date.now();
    $("summary").textContent = text;
  }
}

function tick() {
  if (silent !== null) {
    const seconds = span(Date.now() / 1000 - silent);
    $("silence").querySelector(".time").textContent = `since ${seconds}, trying again. What is shown is from before.`;
    document.title = "… ppd does not answer";
    return;
  }
  if (!picture) return;
  const now = stream.now();
  const deadline = picture.head.alert_deadline;
  showVerdict(picture, now);
  plane.paint(picture.detectors, deadline, now);
  const shape = detectors.find((d) => d.id === panel.detector);
  if (shape) panel.now(describe(shape, picture.detectors[shape.id], now));
}

const stream = listen(told);
setInterval(tick, 1000);
begin();
