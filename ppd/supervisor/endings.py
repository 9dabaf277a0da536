"""What becomes of a detector-visit when its child has ended."""

from __future__ import annotations

__all__ = ["Endings"]

import logging
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ..config import Settings
from ..crash_points import here
from ..logs import bound
from ..messages import ChildDone, Predecessor, own_folder
from .ledger import Ledger
from .spool import find_ready, is_ready
from .table import DetectorVisit, State

_LOG = logging.getLogger(__name__)

# A child's last word and the news of its end come by different ways.
_LAST_WORD_SECONDS = 1.0
_RETRY_DELAY = 0.5
_MAX_LOOKS = 3
# While these last, other people's code runs.
_TASK_PHASES = frozenset({"preprocess", "main"})


class Endings:
    """Decides between success, another try, failure, and the next start.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    ledger : `ppd.supervisor.ledger.Ledger`
        Where it is written down.
    release : callable
        Gives back what a detector-visit held that is over.
    """

    def __init__(self, settings: Settings, ledger: Ledger, release: Callable[[DetectorVisit], None]):
        self._settings = settings
        self._ledger = ledger
        self._release = release
        self.stopping = False
        """Whether what is unfinished is left for the next start."""
        self.hurried = False
        """Whether nobody waits for last words any more."""

    def due(self, d: DetectorVisit, now: float) -> bool:
        """Whether a child has ended and nothing more will be heard of it."""
        patience = 0.0 if self.hurried else _LAST_WORD_SECONDS
        return d.exited_at is not None and (d.done is not None or now >= d.exited_at + patience)

    def settle(self, d: DetectorVisit) -> None:
        """Decide, once the child is gone; `due` says when.

        What the exporter has said meanwhile may have to be heard first; then
        nothing is decided, and it is to be called again in the next turn.
        """
        repo = local_repo(self._settings, d)
        spool = Path(self._settings.spool_dir)
        shutil.rmtree(spool / "building" / d.key.file_name, ignore_errors=True)
        done = self._last_word(d)
        if done is None:
            return
        ended = time.time() - (time.monotonic() - (d.exited_at or 0.0))
        self._ledger.event(d, "ended", ended, pid=d.pid, how=_ending(d.exit_code), phase=d.phase)
        if d.termination and not done.success:
            done = done.model_copy(update={"reason": f"{d.termination}; {done.reason}"})
        left = self._left_behind(d, done)
        # The next start looks into it, if this one does not.
        keep = None if left is None else left.local_repo
        before = [Path(d.predecessor.local_repo)] if d.predecessor is not None else []
        for folder in (repo, own_folder(repo), *before):
            if str(folder) != keep:
                shutil.rmtree(folder, ignore_errors=True)
        here("supervisor.remains-removed")
        if left is not None and not self.stopping:
            self._look_back(d, left)
        elif done.success:
            self._succeed(d, done)
        elif done.entry:
            # A final failure's outputs are exported, and it stays a failure.
            self._ledger.failed(d, done.reason, done.failure or "final")
            d.lost_cause = done.reason
            self._hand_over(d, done)
        elif d.putting_back and done.failure == "retriable" and not self.stopping:
            d.put_backs += 1
            d.next_attempt(delay=0.0)
            self._ledger.change(d, State.WAITING, reason="put back: it is late")
        elif done.failure == "retriable" and self.stopping:
            self._put_off(d, done.reason)
        elif done.failure == "retriable" and done.retry and self._may_retry(d):
            self._retry(d, done.reason)
        else:
            self.fail(d, done.reason, done)

    def fail(self, d: DetectorVisit, reason: str, done: ChildDone | None = None) -> None:
        """Let a detector-visit fail for good."""
        if d.state is State.FAILED:
            return
        if d.predecessor is not None and Path(d.predecessor.local_repo).exists():
            # No child could be had to look into it.
            shutil.rmtree(d.predecessor.local_repo, ignore_errors=True)
            reason = f"{reason}; what a killed attempt may have made is lost ({d.predecessor.reason})"
        if d.lost_cause:
            # It has been counted; now its outputs are lost too.
            reason = f"{d.lost_cause}; {reason}"
            self._ledger.event(d, "outputs_lost", reason=reason)
        else:
            self._ledger.failed(d, reason, (done.failure if done else None) or "retriable")
        self._release(d)
        self._ledger.change(d, State.FAILED, reason=reason, pipeline=done.pipeline if done else None)

    def _left_behind(self, d: DetectorVisit, done: ChildDone) -> Predecessor | None:
        """Say what has to be looked into after a child that was killed when its main pipeline had begun."""
        if d.done is not None or done.entry is not None:
            return None
        if d.state is State.RUNNING:
            folder = local_repo(self._settings, d)
            left = Predecessor(local_repo=str(folder), reason=done.reason, last=not self._may_retry(d))
        elif d.predecessor is not None and d.looks <= _MAX_LOOKS:
            # Killed before it could look.
            left = d.predecessor.model_copy(update={"last": d.predecessor.last or not self._may_retry(d)})
        else:
            return None
        return left if Path(left.local_repo).exists() else None

    def _look_back(self, d: DetectorVisit, left: Predecessor) -> None:
        if left.last:
            self._ledger.event(d, "look_back", reason=left.reason)
            with bound(group=d.group, detector=d.detector):
                _LOG.warning("Detector-visit %s: %s; what it has left is looked into.", d.key, left.reason)
            d.next_attempt(delay=_RETRY_DELAY)
            self._ledger.change(d, State.WAITING, reason=left.reason)
        else:
            self._retry(d, left.reason)
        d.looks += 1
        d.predecessor = left
        here("supervisor.look-back-noted")

    def _last_word(self, d: DetectorVisit) -> ChildDone | None:
        """Return what a child said last, or say for it what it could not say itself."""
        said = d.done
        if said is not None and not said.entry and said.success:
            return said
        spool = Path(self._settings.spool_dir)
        ready = find_ready(spool, d.key)
        # One that can't be read is there all the same: the exporter will say what is wrong with it.
        if ready is not None or is_ready(spool, d.key) or d.exported or d.set_aside:
            if said is not None and said.entry:
                return said
            # Ended between the hand-over and its last message: nothing is
            # lost, and another try would make the same outputs twice.
            success = ready is None or ready.success
            why = ready.reason if ready is not None else ""
            return ChildDone(
                key=d.key,
                success=success,
                entry=d.key.file_name,
                failure=None if success else "final",
                reason=self._why(said, success) if said or not why else why,
            )
        if not d.looked_for:
            # The exporter sets one aside first and says so afterwards.
            d.looked_for = True
            return None
        ending = f"its child ended by {_ending(d.exit_code)} while {d.phase or 'starting'}"
        if said is not None and said.entry:
            # What it names is not there: it is no word of a child of ours.
            ending = f"the outputs that its child spoke of are not in the spool; {ending}"
        elif said is not None:
            return said
        if d.exit_code is not None and d.exit_code >= 0 and d.phase in _TASK_PHASES:
            ending = f"{ending}, without a last word: a task may have called os._exit"
        return ChildDone(key=d.key, success=False, reason=ending, failure="retriable")

    def _why(self, said: ChildDone | None, success: bool) -> str:
        """Say why a hand-over that its child did not speak of is what it is."""
        if success:
            return ""
        return said.reason if said else "its pipeline failed; its child ended before it said why"

    def _succeed(self, d: DetectorVisit, done: ChildDone) -> None:
        self._ledger.counters.add("succeeded")
        with bound(group=d.group, detector=d.detector):
            _LOG.info("Detector-visit %s succeeded; %d outputs are in the spool.", d.key, done.datasets)
        if done.reason:
            d.remark = done.reason
            self._ledger.incomplete(d, done.reason)
        if done.entry:
            self._hand_over(d, done)
        else:
            self._release(d)
            self._ledger.change(d, State.EXPORTED, reason=done.reason or None, pipeline=done.pipeline)
            self._ledger.event(d, "exported", datasets=0)

    def _hand_over(self, d: DetectorVisit, done: ChildDone) -> None:
        self._release(d)
        reason = d.lost_cause or d.remark or None
        state = State.HANDED_OVER
        if d.exported:
            # The exporter can be faster than the news of the child's end.
            state = State.FAILED if d.lost_cause else State.EXPORTED
        self._ledger.change(d, state, reason=reason, pipeline=done.pipeline)
        if d.set_aside:
            self.fail(d, d.set_aside)

    def _may_retry(self, d: DetectorVisit) -> bool:
        if d.predecessor is not None and d.predecessor.last:
            return False
        return d.may_retry and d.attempt - d.put_backs <= self._settings.retries and time.time() < d.expires

    def _retry(self, d: DetectorVisit, reason: str) -> None:
        self._ledger.fault(d, "retried", reason)
        self._ledger.event(d, "retried", reason=reason)
        d.next_attempt(delay=_RETRY_DELAY)
        self._ledger.change(d, State.WAITING, reason=reason)
        here("supervisor.retry-noted")

    def _put_off(self, d: DetectorVisit, reason: str) -> None:
        with bound(group=d.group, detector=d.detector):
            _LOG.warning("Detector-visit %s is left for the next start: %s", d.key, reason)
        d.next_attempt(delay=0.0)
        self._ledger.change(d, State.WAITING, reason=reason)


def local_repo(settings: Settings, d: DetectorVisit) -> Path:
    """Return the folder of the current attempt's local repo."""
    return Path(settings.local_repos) / f"ppd-{d.key.file_name}"


def _ending(code: int | None) -> str:
    if code is None:
        return "an unknown cause"
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
