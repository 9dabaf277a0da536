// What ppd tells, as it tells it; and whether it tells anything.

const SILENT_SECONDS = 6;
const AGAIN_MS = 2000;

// `told` has the functions picture, change and silence; silence gets since when (page's clock,
// seconds), or null when ppd answers again.
export function listen(told) {
  let source = null;
  let heard = Date.now() / 1000;
  let silent = null;
  let offset = 0;

  function quiet(since) {
    silent ??= since;
    told.silence(silent);
  }

  function alive() {
    heard = Date.now() / 1000;
  }

  function open() {
    source?.close();
    source = new EventSource("/events");
    source.addEventListener("picture", (e) => {
      alive();
      silent = null;
      told.silence(null);
      told.picture(JSON.parse(e.data));
    });
    source.addEventListener("change", (e) => {
      alive();
      told.change(JSON.parse(e.data));
    });
    source.addEventListener("silent", (e) => {
      alive();
      quiet(JSON.parse(e.data).since - offset);
    });
    source.addEventListener("beat", (e) => {
      alive();
      offset = JSON.parse(e.data).time - Date.now() / 1000;
    });
    source.addEventListener("error", () => {
      quiet(heard);
      // What was refused is not tried again by the browser.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS);
    });
  }

  open();
  setInterval(() => {
    if (Date.now() / 1000 - heard > SILENT_SECONDS) {
      const since = heard;
      alive();
      quiet(since);
      open();
    }
  }, 1000);
  return { now: () => Date.now() / 1000 + offset };
}
