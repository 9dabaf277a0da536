"""Announcements that come by a Redis stream, one entry per detector, as Rubin's fan-out service writes them.

One thread reads. What it has read is given to the supervisor's loop, and nothing more
is read until that has judged it: so the connection is free to confirm (XACK) at once
what the journal has. What was not confirmed, because ppd could not take it or has died,
stays pending with this consumer, whose name a restart has too, and is read again.
"""

from __future__ import annotations

__all__ = ["RedisOptions", "RedisVisits", "consumer_name"]

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..crash_points import here
from ..redis_client import explain, make_client, public_url
from .redis_stream import REJECTED_SUFFIX, RedisStream, StreamEntry
from .visits import Announcement, Heard, Judgement, Undelivered, Verdict, VisitSourceStatus

_LOG = logging.getLogger(__name__)

# So many at once that the loop is not held up for long: each takes about a millisecond.
_BATCH = 100
# A read waits no longer, so that what was judged and a stop are not kept waiting.
_BLOCK_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_FIRST_DELAY = 0.5
# What could not be taken is tried again so soon at first.
_POSTPONED_SECONDS = 1.0
_MAX_POSTPONED_SECONDS = 30.0
_MAX_ENTRY_BYTES = 1 << 20
# Clocks of the server and of this machine may differ by so much.
_CLOCK_SECONDS = 60.0
_BEGIN = "0-0"


@dataclasses.dataclass(frozen=True)
class RedisOptions:
    """Which stream, and how to treat it; see the settings ``redis_…`` in `ppd.config.Settings`."""

    url: str
    stream: str
    group: str
    consumer: str
    """Who we are in the group; the same after a restart."""
    ca_file: Path | None = None
    retry_delay: float = 30.0
    """The longest pause while the server is away, seconds."""
    listen_timeout: float = 300.0
    """Seconds without an entry after which the connection is made anew."""
    claim_idle: float = 60.0
    """Seconds after which what another consumer has not confirmed is taken over."""
    deliveries: int = 5
    """How often an entry that nobody can answer for is delivered."""
    expiration: float = 3600.0
    """Seconds after which no announcement is taken any more: a new group does not hear older ones."""


def consumer_name(state_dir: Path) -> str:
    """Name the consumer: one per host and state directory, the same after a restart."""
    return f"ppd-{socket.gethostname()}-{hashlib.sha256(bytes(state_dir.absolute())).hexdigest()[:8]}"


class RedisVisits:
    """The announcements of one stream.

    Parameters
    ----------
    options : `RedisOptions`
        Which, and how.
    report : callable
        Called with each `Heard` and `Undelivered`, from the source's thread.
    """

    kind = "redis"

    def __init__(self, options: RedisOptions, report: Callable[[Heard | Undelivered], None]):
        self._options = options
        self._report = report
        self._name = f"{public_url(options.url)}, stream {options.stream}, group {options.group}"
        self._wake = threading.Condition()
        self._stopping = False
        self._held: str | None = "ppd starts"
        self._status = VisitSourceStatus(self._name)
        # What the loop was given and has not judged; what it has judged and the server does not know.
        self._in_hand: dict[str, StreamEntry] = {}
        self._judged: dict[str, tuple[Judgement, StreamEntry]] = {}
        self._defects: dict[str, str] = {}
        self._after = _BEGIN
        self._again_at = 0.0
        self._postponed, self._pause = False, _POSTPONED_SECONDS
        self._claim_at, self._cursor = 0.0, _BEGIN
        self._look_at = 0.0
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="redis-visits", daemon=True)

    @property
    def name(self) -> str:
        """What it listens to."""
        return self._name

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Confirm what was judged, and end the thread; bounded."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def hold(self, reason: str | None) -> None:
        """Read nothing for a reason, or go on."""
        if reason != self._held:
            with self._wake:
                self._held = reason
                self._wake.notify_all()

    def settle(self, judgements: Sequence[Judgement]) -> None:
        """Take what the supervisor says."""
        with self._wake:
            for judgement in judgements:
                entry = self._in_hand.pop(judgement.ticket, None)
                if entry is not None:
                    self._judged[judgement.ticket] = judgement, entry
            self._wake.notify_all()

    def status(self) -> VisitSourceStatus:
        """Tell how the source is."""
        return dataclasses.replace(self._status, held=self._held)

    def _count(self, **values: Any) -> None:
        self._status = dataclasses.replace(self._status, **values)

    def _add(self, name: str, number: int) -> None:
        self._count(**{name: getattr(self._status, name) + number})

    # The thread

    def _run(self) -> None:
        options = self._options
        while not self._stopping:
            try:
                client = make_client(
                    options.url, ca_file=options.ca_file, name=options.consumer, timeout=_BLOCK_SECONDS + 5.0
                )
                with contextlib.closing(client):
                    self._serve(RedisStream(client, options.stream, options.group, options.consumer))
            except Exception as e:
                self._fails(e)
                self._sleep(self._delay())

    def _fails(self, error: Exception) -> None:
        text = explain(error)
        if text is None:
            text = f"a defect: {type(error).__name__}: {error}"
            _LOG.exception("Visits from %s: a defect; it goes on.", self._name)
        elif self._status.trouble is None:
            _LOG.error("Visits from %s: %s. It is tried again.", self._name, text)
        self._count(trouble=text, lag=None, pending=None)
        self._failures += 1

    def _delay(self) -> float:
        longest = min(self._options.retry_delay, _FIRST_DELAY * 2.0 ** min(self._failures - 1, 20))
        return longest * random.uniform(0.5, 1.0)

    def _well(self) -> None:
        if self._status.trouble is not None:
            _LOG.warning("Visits from %s: well again.", self._name)
            self._count(trouble=None)
        self._failures = 0

    def _sleep(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, max(0.0, seconds))

    def _serve(self, stream: RedisStream) -> None:
        """Read and confirm with one connection, until it has been silent for long or ppd stops."""
        self._prepare(stream)
        # Those of the last life, or connection, come first.
        self._after, self._again_at = _BEGIN, 0.0
        heard_at = time.monotonic()
        while True:
            self._confirm(stream)
            if self._stopping:
                return
            now = time.monotonic()
            if now >= self._look_at:
                self._look(stream)
            if self._held is not None or self._in_hand:
                self._await_change()
                continue
            if now >= self._again_at:
                entries = self._read_again(stream)
            elif now >= self._claim_at:
                self._claim(stream)
                continue
            else:
                entries = stream.new(_BATCH, _BLOCK_SECONDS)
            self._well()
            if entries:
                heard_at = now
                self._hand_over(entries)
            elif now > heard_at + self._options.listen_timeout:
                return

    def _prepare(self, stream: RedisStream) -> None:
        """Make the group if it is not there: a site's workers would have it, too."""
        if stream.standing() is None:
            since = time.time() - self._options.expiration - _CLOCK_SECONDS
            stream.make_group(since)
            _LOG.warning(
                "Visits from %s: there was no such group; it is made, and hears what came since %s UTC.",
                self._name,
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(since)),
            )

    def _look(self, stream: RedisStream) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        lag, pending = stream.standing() or (None, None)
        self._count(lag=lag, pending=pending)
        if self._held is not None:
            self._well()  # no read will tell

    def _await_change(self) -> None:
        """Wait for what the loop says, or until the next look."""
        with self._wake:
            seconds = self._look_at - time.monotonic()
            self._wake.wait_for(
                lambda: bool(self._stopping or self._judged or (self._held is None and not self._in_hand)),
                min(_LOOK_SECONDS, max(0.0, seconds)),
            )

    # Reading

    def _read_again(self, stream: RedisStream) -> list[StreamEntry]:
        """Read some of what is pending with us; alone what may have ended whoever was given it."""
        rows = stream.pending(self._after, _BATCH)
        if not rows:
            self._after, self._again_at = _BEGIN, math.inf
            if self._postponed:
                self._again_at = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
                self._pause = min(_MAX_POSTPONED_SECONDS, 2.0 * self._pause)
            else:
                self._pause = _POSTPONED_SECONDS
            self._postponed = False
            return []
        first = rows[0]
        if first.deliveries >= self._options.deliveries:
            self._after = first.id
            self._give_up(stream, first.id, first.deliveries)
            return []
        harmless = sum(1 for _ in itertools.takewhile(lambda row: row.deliveries <= 1, rows))
        entries = stream.again(self._after, max(1, harmless))
        self._after = entries[-1].id if entries else first.id
        return entries

    def _claim(self, stream: RedisStream) -> None:
        """Take over what another consumer was given and has not confirmed; it is read with our own."""
        claimed = stream.claim(self._options.claim_idle, self._cursor, _BATCH)
        self._cursor = claimed.cursor
        if claimed.cursor == _BEGIN:
            self._claim_at = time.monotonic() + self._options.claim_idle * random.uniform(0.25, 0.5)
        for name in claimed.gone:
            self._lost(name)
        if claimed.ids:
            self._add("claimed", len(claimed.ids))
            self._after, self._again_at = _BEGIN, 0.0
            _LOG.warning("Visits from %s: %d were taken over from others.", self._name, len(claimed.ids))

    def _hand_over(self, entries: Sequence[StreamEntry]) -> None:
        self._add("read", len(entries))
        gone = {entry.id: Judgement(entry.id, Verdict.DONE) for entry in entries if not entry.fields}
        for name in gone:
            self._lost(name)
        good = [entry for entry in entries if entry.fields]
        with self._wake:
            self._judged |= {e.id: (gone[e.id], e) for e in entries if e.id in gone}
            self._in_hand = {entry.id: entry for entry in good}
        here("supervisor.entries-read")
        if good:
            self._report(Heard(self, tuple(map(_announcement, good))))

    def _lost(self, name: str) -> None:
        self._add("gone", 1)
        text = "its body is gone: the stream was trimmed before anybody had confirmed it"
        self._report(Undelivered(name, self._name, True, text))

    def _give_up(self, stream: RedisStream, name: str, deliveries: int) -> None:
        reason = f"it was delivered {deliveries} times, and nobody could say what became of it"
        if name in self._defects:
            reason += f"; the last time: {self._defects.pop(name)}"
        stream.set_aside(stream.look(name), reason)
        self._add("set_aside", 1)
        self._report(Undelivered(name, self._name, False, f"{reason}: see {self.rejected}"))

    @property
    def rejected(self) -> str:
        """Name of the stream that holds what was set aside."""
        return f"{self._options.stream}{REJECTED_SUFFIX}"

    # Confirming

    def _confirm(self, stream: RedisStream) -> None:
        """Tell the server what was judged; what fails is told again over the next connection."""
        with self._wake:
            judged = dict(self._judged)
        if not judged:
            return
        done = [name for name, (judgement, _) in judged.items() if judgement.verdict is Verdict.DONE]
        if done:
            here("supervisor.entries-not-confirmed")
            stream.confirm(done)
            here("supervisor.entries-confirmed")
            self._settled(done)
            self._add("confirmed", len(done))
            self._count(delay=max(0.0, time.time() - judged[done[-1]][1].delivered))
        for name, (judgement, entry) in judged.items():
            if judgement.verdict is Verdict.REJECTED:
                stream.set_aside(entry, judgement.reason)
                self._settled([name])
                self._add("set_aside", 1)
        later = [name for name, (judgement, _) in judged.items() if judgement.verdict is Verdict.LATER]
        if later:
            stream.forgive(later)
        for name, (judgement, _) in judged.items():
            if judgement.verdict is Verdict.DEFECT:
                self._defects[name] = judgement.reason
                later.append(name)
        if later:
            self._settled(later)
            self._add("postponed", len(later))
            self._postponed = True
            if self._again_at == math.inf:
                self._again_at = time.monotonic() + _POSTPONED_SECONDS

    def _settled(self, names: Sequence[str]) -> None:
        with self._wake:
            for name in names:
                judgement, _ = self._judged.pop(name)
                if judgement.verdict is not Verdict.DEFECT:
                    self._defects.pop(name, None)


def _announcement(entry: StreamEntry) -> Announcement:
    size = sum(len(key) + len(value) for key, value in entry.fields.items())
    if size > _MAX_ENTRY_BYTES:
        return Announcement(entry.id, {}, entry.delivered, f"an entry of {size} bytes is no nextVisit")
    # What is no UTF-8 is no field that is known, or fails where it is read.
    fields = {_text(key): _text(value) for key, value in entry.fields.items()}
    return Announcement(entry.id, fields, entry.delivered)


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
