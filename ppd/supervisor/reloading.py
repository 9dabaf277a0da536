"""Reloading the configuration: checked whole, then in force, or nothing has changed."""

from __future__ import annotations

__all__ = ["Reloader"]

import dataclasses
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ..config import Settings, load_settings
from ..deployment import day_obs, deployment_id
from ..errors import PpdError
from .deployments import Deployment
from .init_process import InitProcess
from .requests import Learn, Learned
from .setting_kinds import Kind, compare

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)

_CHECK_SECONDS = 60.0
_BUILD_SECONDS = 120.0
_LEARN_SECONDS = 120.0


@dataclasses.dataclass
class _Reload:
    """One reload: how far it is, or how it ended."""

    number: int
    source: str
    begun: float
    state: str = "checking"
    """``checking``, ``building`` (a nursery), ``initializing``, ``learning``; ``in_force`` or ``refused``."""
    since: float = 0.0
    changes: tuple[str, ...] = ()
    error: str | None = None
    settings: Settings | None = None
    deployment: Deployment | None = None
    """The one to come, if it is another."""
    initialized: bool = False
    """Whether ``ppd-init`` has been run for it."""

    @property
    def over(self) -> bool:
        return self.state in ("in_force", "refused")


class Reloader:
    """Takes a new configuration, step by step, in the turns of the loop.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        Whose configuration it is.
    """

    def __init__(self, supervisor: Supervisor):
        self._supervisor = supervisor
        self._count = 0
        self._last: _Reload | None = None
        self._checked: tuple[_Reload, Settings | None, str] | None = None
        self._init: InitProcess | None = None

    def begin(self, source: str) -> tuple[int, str | None]:
        """Begin a reload.

        Parameters
        ----------
        source : `str`
            Who wants it, for the log.

        Returns
        -------
        number : `int`
            By which `describe` tells of it.
        refusal : `str` or `None`
            Why none is begun.
        """
        refusal = None
        if self._last is not None and not self._last.over:
            refusal = (
                f"Reload {self._last.number} is at work ({self._last.state}); ask again when it is over."
            )
        elif not self._supervisor.central.started:
            refusal = "ppd has only just started and builds its first nursery; ask again in some seconds."
        elif self._supervisor.draining or self._supervisor.stopping:
            refusal = "ppd is draining or stops: the next start reads the configuration."
        if refusal is not None:
            self._supervisor.counters.error("reloads_refused", source, refusal)
            _LOG.error("Reload (%s) refused: %s", source, refusal)
            return 0, refusal
        self._count += 1
        now = time.monotonic()
        reload = self._last = _Reload(self._count, source, now, since=now)
        _LOG.info("Reload %d (%s) begins.", reload.number, source)
        # Files are read, perhaps of a slow or remote place, and pipelines parsed.
        threading.Thread(
            target=self._check, args=(reload, self._supervisor.settings.config_path), daemon=True
        ).start()
        return reload.number, None

    def describe(self, number: int | None = None) -> dict[str, Any]:
        """Tell of the last reload, or of one by its number; empty: it is not known."""
        reload = self._last
        if reload is None or (number is not None and number != reload.number):
            return {}
        return {
            "number": reload.number,
            "state": reload.state,
            "changes": list(reload.changes),
            "error": reload.error,
        }

    def stop(self) -> None:
        """Leave it."""
        if self._init is not None:
            self._init.kill()
            self._init = None

    def turn(self) -> None:
        """Go on with it, if anything is due; returns at once."""
        reload = self._last
        if reload is None or reload.over:
            return
        if self._supervisor.stopping:
            self._refuse(reload, "ppd stops.")
        elif reload.state == "checking":
            self._look_at_check(reload)
        elif reload.state == "building":
            self._look_at_nursery(reload)
        elif reload.state == "initializing":
            self._look_at_init(reload)
        elif time.monotonic() > reload.since + _LEARN_SECONDS:
            self._refuse(reload, f"The central repo did not answer in {_LEARN_SECONDS:.0f} s.")

    # Checking

    def _check(self, reload: _Reload, path: Any) -> None:
        """Read the configuration, in a thread of its own."""
        try:
            settings = load_settings(path, os.environ)
            self._checked = reload, settings, deployment_id(settings)
        except PpdError as e:
            self._checked = reload, None, str(e)
        except Exception as e:
            _LOG.exception("The configuration can't be checked.")
            self._checked = reload, None, f"{type(e).__name__}: {e}"

    def _look_at_check(self, reload: _Reload) -> None:
        checked = self._checked
        if checked is None or checked[0] is not reload:
            if time.monotonic() > reload.since + _CHECK_SECONDS:
                self._refuse(reload, f"It could not be read in {_CHECK_SECONDS:.0f} s.")
            return
        self._checked = None
        _, settings, text = checked
        if settings is None:
            self._refuse(reload, text)
            return
        old = self._supervisor.deployment
        changes = compare(self._supervisor.settings, settings)
        reload.changes = tuple(map(str, changes))
        reload.settings = settings
        restart = [c.name for c in changes if c.kind is Kind.RESTART]
        if restart:
            self._refuse(reload, "; ".join(f"{name} {Kind.RESTART}" for name in restart) + ".")
            return
        if text != old.id:
            reload.changes += (f"deployment: {old.id} -> {text} (visits accepted before keep theirs)",)
        elif not any(c.kind is Kind.NURSERY for c in changes):
            self._put_in_force(reload)
            return
        reload.deployment = Deployment(text, settings, generation=old.generation + 1)
        self._supervisor.nursery.begin_candidate(settings)
        self._enter(reload, "building")

    def _look_at_nursery(self, reload: _Reload) -> None:
        word = self._supervisor.nursery.candidate_word()
        if isinstance(word, str):
            self._refuse(reload, word)
        elif word is not None:
            assert reload.deployment is not None
            reload.deployment = dataclasses.replace(reload.deployment, pipelines=word.pipelines)
            self._learn(reload)
        elif time.monotonic() > reload.since + _BUILD_SECONDS:
            self._refuse(reload, f"Its nursery was not ready in {_BUILD_SECONDS:.0f} s.")

    def _learn(self, reload: _Reload) -> None:
        assert reload.deployment is not None
        self._enter(reload, "learning")
        self._supervisor.central.request(Learn(reload.deployment, day_obs(time.time()), reload.number))

    def learned(self, answer: Learned) -> None:
        """Take what the reader has found for the deployment to come."""
        reload = self._last
        if reload is None or reload.state != "learning" or reload.number != answer.number:
            return
        assert reload.deployment is not None and reload.settings is not None
        if answer.error is None:
            self._put_in_force(reload)
        elif answer.missing and reload.settings.initialize_automatically and not reload.initialized:
            reload.initialized = True
            self._init = InitProcess(reload.deployment, day_obs(time.time()))
            self._enter(reload, "initializing")
        else:
            self._refuse(reload, answer.error)

    def _look_at_init(self, reload: _Reload) -> None:
        if self._init is None or (ended := self._init.poll()) is None:
            return
        self._init = None
        code, text = ended
        if code:
            self._refuse(reload, f"ppd-init failed with exit code {code}: {text}")
        else:
            self._learn(reload)

    # The end

    def _enter(self, reload: _Reload, state: str) -> None:
        reload.state, reload.since = state, time.monotonic()
        _LOG.info("Reload %d: %s.", reload.number, state)

    def _put_in_force(self, reload: _Reload) -> None:
        assert reload.settings is not None
        self._supervisor.put_in_force(reload.settings, reload.deployment)
        reload.state = "in_force"
        for change in reload.changes:
            _LOG.warning("Reload %d: %s", reload.number, change)
        seconds = time.monotonic() - reload.begun
        _LOG.warning(
            "Reload %d is in force after %.1f s; %d changes.", reload.number, seconds, len(reload.changes)
        )

    def _refuse(self, reload: _Reload, reason: str) -> None:
        self.stop()
        self._supervisor.nursery.drop_candidate()
        reload.state, reload.error = "refused", reason
        self._supervisor.counters.error("reloads_refused", reload.source, reason)
        _LOG.error("Reload %d is refused, and nothing has changed: %s", reload.number, reason)
