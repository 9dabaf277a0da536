"""The days: the init-outputs of the next one are there, and known, before it begins."""

from __future__ import annotations

__all__ = ["Rollover"]

import dataclasses
import logging
import random
import shlex
import time
from collections.abc import Callable, Iterable

from ..config import Settings
from ..deployment import day_obs
from .deployments import Deployment
from .init_process import InitProcess
from .requests import DayKnown, LearnDay

_LOG = logging.getLogger(__name__)

_TURN_SECONDS = 0.5
_ASK_SECONDS = 10.0
_SAY_SECONDS = 300.0
_FIRST_DELAY = 5.0
_MAX_DELAY = 300.0
_DAY = 86400.0


@dataclasses.dataclass
class _Day:
    """What is known of a day of a deployment."""

    day_obs: int
    deployment: Deployment
    ready: bool = False
    asked: bool = False
    """Whether the reader looks for it just now."""
    missing: bool = False
    """Whether the reader found that it was not prepared."""
    trouble: str = ""
    failures: int = 0
    not_before: float = 0.0
    said_at: float | None = None


class Rollover:
    """Has days prepared, or says that they are not, some time before they begin.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    ask : callable
        Takes requests to the reader of the central repo.
    """

    def __init__(self, settings: Settings, ask: Callable[[LearnDay], None]):
        self._settings = settings
        self._ask = ask
        self._days: dict[tuple[int, str], _Day] = {}
        self._process: tuple[_Day, InitProcess] | None = None
        self._next = 0.0

    @property
    def pids(self) -> set[int]:
        """Process ID of a ``ppd-init`` at work, if one is."""
        return {self._process[1].pid} if self._process else set()

    def turn(self, deployment: Deployment, others: Iterable[int] = ()) -> None:
        """Do what is due; returns at once.

        Parameters
        ----------
        deployment : `ppd.supervisor.deployments.Deployment`
            What new visits belong to.
        others : iterable of `int`
            Days of visits that wait for their inputs.
        """
        self._look_after()
        now, clock = time.monotonic(), time.time()
        if now < self._next:
            return
        self._next = now + _TURN_SECONDS
        ahead = min(self._settings.rollover_lead, _DAY / 2)
        wanted = {day_obs(clock), day_obs(clock + ahead), *others}
        for key in [k for k in self._days if k[0] not in wanted or k[1] != deployment.id]:
            del self._days[key]
        for number in sorted(wanted):
            day = self._days.setdefault((number, deployment.id), _Day(number, deployment))
            if day.ready or day.asked:
                continue
            if day.missing:
                self._say(day, now, clock)
            if now >= day.not_before:
                self._go_on(day)

    def looked(self, answer: DayKnown) -> bool:
        """Take note of what the reader has found; whether a day has become ready."""
        day = self._days.get((answer.day_obs, answer.deployment))
        if day is None:
            return False
        day.asked = False
        # That it has to be prepared is no fault where ppd-init is started for it.
        alone = answer.missing and self._settings.initialize_automatically
        day.missing, day.trouble = answer.missing, "" if alone else answer.error or ""
        day.ready = answer.error is None
        if day.ready:
            _LOG.info("The init-outputs of %d are there.", day.day_obs)
        elif not answer.missing:
            # Central is away, or the cache is full.
            day.not_before = time.monotonic() + self._back_off(day)
        elif not self._settings.initialize_automatically:
            day.not_before = time.monotonic() + _ASK_SECONDS
        return day.ready

    def faults(self) -> list[str]:
        """Say what is wrong, for people."""
        clock = time.time()
        return [
            self._lack(day, clock) if day.missing else f"init-outputs of {day.day_obs}: {day.trouble}"
            for day in self._days.values()
            if not day.ready and day.trouble and not self._at_work(day)
        ]

    def stop(self) -> None:
        """End a ``ppd-init`` that is at work."""
        if self._process is not None:
            self._process[1].kill()
            self._process = None

    def _go_on(self, day: _Day) -> None:
        """Have a day prepared if it has to be, or look whether it is."""
        if day.missing and self._settings.initialize_automatically:
            if self._process is None:
                _LOG.info("ppd-init is started for %d.", day.day_obs)
                self._process = day, InitProcess(day.deployment, day.day_obs)
        else:
            day.asked = True
            self._ask(LearnDay(day.day_obs, day.deployment.id))

    def _look_after(self) -> None:
        if self._process is None or (ended := self._process[1].poll()) is None:
            return
        day, _ = self._process
        self._process = None
        code, text = ended
        if code == 0:
            day.missing = False  # it is looked for again
            return
        delay = self._back_off(day)
        day.not_before = time.monotonic() + delay
        last = text.splitlines()[-1] if text else "it said nothing"
        day.trouble = f"ppd-init failed with exit code {code}: {last}"
        _LOG.error("ppd-init for %d failed with exit code %d; next try in %.0f s.", day.day_obs, code, delay)

    def _back_off(self, day: _Day) -> float:
        day.failures += 1
        return min(_FIRST_DELAY * 2.0 ** (day.failures - 1), _MAX_DELAY) * random.uniform(0.7, 1.0)

    def _at_work(self, day: _Day) -> bool:
        return self._process is not None and self._process[0] is day

    def _say(self, day: _Day, now: float, clock: float) -> None:
        """Warn in good time, and again now and then."""
        if self._settings.initialize_automatically or (day.said_at and now < day.said_at + _SAY_SECONDS):
            return
        day.said_at = now
        _LOG.warning("%s", self._lack(day, clock))

    def _lack(self, day: _Day, clock: float) -> str:
        today, minutes = day_obs(clock), _until(day.day_obs, clock) / 60.0
        when = f"the day begins in {minutes:.0f} min" if day.day_obs > today else "visits of that day wait"
        text = f"init-outputs of {day.day_obs} are not there yet, {when}"
        if self._settings.initialize_automatically:
            return f"{text}; {day.trouble}"
        command = ["ppd-init"]
        if self._settings.config_path is not None:
            command += ["--config", str(self._settings.config_path)]
        return f"{text}; run: {shlex.join([*command, '--day-obs', str(day.day_obs)])}"


def _until(day: int, clock: float) -> float:
    """Seconds until a day begins that is not more than a day ahead."""
    low, high = 0.0, 2 * _DAY
    while high - low > 1.0:
        middle = (low + high) / 2
        if day_obs(clock + middle) < day:
            low = middle
        else:
            high = middle
    return high
