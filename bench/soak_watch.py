"""What the soak sees of ppd from outside: answers to announcements, and what lies in the spool."""

from __future__ import annotations

__all__ = ["MadeFile", "SpoolWatch", "Submission", "Submitter"]

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from ppd.control import ControlClient, NoSupervisorError

_ANSWER_SECONDS = 2.0
_AGAIN_SECONDS = 0.4
_LOOK_SECONDS = 0.02
_HASTY_SECONDS = 0.001


@dataclasses.dataclass(frozen=True)
class MadeFile:
    """A file that a child has handed over."""

    entry: str
    sha256: str | None
    """`None`: it was gone from the spool before it could be read."""


class SpoolWatch:
    """Looks at the spool all the time, in a thread of its own.

    Parameters
    ----------
    spool : `pathlib.Path`
        Root of the spool.
    """

    def __init__(self, spool: Path):
        self._spool = spool
        self._known: set[tuple[str, int]] = set()
        self._there: dict[str, set[str]] = {"building": set(), "ready": set()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-watch", daemon=True)
        self.made: dict[uuid.UUID, MadeFile] = {}
        """All files of all hand-overs that were ever seen, by dataset."""
        self.moments: Counter[str] = Counter()
        """How often a hand-over was seen that is being built, that is ready, or gone."""
        self.faults: list[str] = []
        self.hasty = False
        """Whether somebody waits for such a moment."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stop.wait(_HASTY_SECONDS if self.hasty else _LOOK_SECONDS):
            try:
                self.look()
            except OSError:
                continue  # the disk has its faults
            except Exception as e:  # the thread has to live
                self.faults.append(f"the spool has something strange: {type(e).__name__}: {e}")
                return

    def look(self) -> None:
        """Look once."""
        for folder in ("building", "ready"):
            with contextlib.suppress(FileNotFoundError):
                there = {p.name for p in (self._spool / folder).iterdir()}
                before, self._there[folder] = self._there[folder], there
                self.moments[folder] += len(there - before)
                if folder == "ready":
                    self.moments["gone"] += len(before - there)
        for name in self._there["ready"]:
            self._read(self._spool / "ready" / name)

    def _read(self, entry: Path) -> None:
        try:
            manifest = entry / "manifest.json"
            mark = (entry.name, manifest.stat().st_mtime_ns)
            if mark in self._known:
                return
            content = json.loads(manifest.read_bytes())
        except FileNotFoundError:
            return  # exported meanwhile
        files = {}
        for dataset in content["datasets"]:
            digest = None
            with contextlib.suppress(FileNotFoundError):
                digest = hashlib.sha256((entry / dataset["path"]).read_bytes()).hexdigest()
            for ref in dataset["refs"]:  # by dataset ID
                files[uuid.UUID(ref)] = MadeFile(entry.name, digest)
        self.made |= files
        self._known.add(mark)


@dataclasses.dataclass
class Submission:
    """A message that ppd has to get."""

    group: str
    detectors: tuple[int, ...]
    message: dict[str, Any]
    purpose: Literal["first", "again", "stale"]
    due: float
    """Monotonic seconds."""
    sent: float = 0.0
    answered: float | None = None
    code: str = ""
    """``accepted``, or how ppd refused it."""
    tries: int = 0


class Submitter:
    """Sends messages, each until ppd has answered it, in a thread of its own.

    Parameters
    ----------
    socket_dir : `pathlib.Path`
        Where ppd's control socket is.
    """

    def __init__(self, socket_dir: Path):
        self._client = ControlClient(socket_dir, timeout=_ANSWER_SECONDS)
        self._open: list[Submission] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="submitter", daemon=True)
        self.all: list[Submission] = []
        self.faults: list[str] = []
        """What ppd answered and should not have."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, whatever has not been answered."""
        self._stop.set()
        self._thread.join(10.0)
        self._client.close()

    def put(self, submission: Submission) -> None:
        """Have a message sent when it is due."""
        with self._lock:
            self._open.append(submission)
            self.all.append(submission)

    def unanswered(self) -> list[Submission]:
        """List what ppd has not answered yet."""
        with self._lock:
            return list(self._open)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            with self._lock:
                due = min(self._open, key=lambda s: s.due, default=None)
            if due is not None and due.due <= time.monotonic():
                try:
                    self._send(due)
                except Exception as e:  # the thread has to live
                    self.faults.append(f"{due.group}: {type(e).__name__}: {e}")
                    due.due = time.monotonic() + 5 * _AGAIN_SECONDS

    def _send(self, what: Submission) -> None:
        what.sent = what.sent or time.monotonic()
        what.tries += 1
        try:
            reply = self._client.submit(what.message)
        except NoSupervisorError:
            what.due = time.monotonic() + _AGAIN_SECONDS
            return
        code = "accepted" if reply.ok else reply.code or "?"
        if code == "unavailable":
            what.due = time.monotonic() + _AGAIN_SECONDS
            return
        what.code, what.answered = code, time.monotonic()
        # Who was not heard the first time can't tell a repeat from a first message.
        allowed = {"first": {"accepted"}, "again": {"duplicate"}, "stale": {"stale"}}[what.purpose]
        if what.purpose != "stale" and (what.tries > 1 or self._is_open(what)):
            allowed = {"accepted", "duplicate"}
        if code not in allowed:
            self.faults.append(f"{what.group}, {what.purpose}: {code} {reply.error or ''}")
        with self._lock:
            self._open.remove(what)

    def _is_open(self, what: Submission) -> bool:
        with self._lock:
            others = [s for s in self.all if s.group == what.group and s is not what]
        return any(s.answered is None or s.tries > 1 for s in others)
