"""``ppd-init`` as a process of the supervisor's: task code has no place in the supervisor."""

from __future__ import annotations

__all__ = ["InitProcess", "initialize_now"]

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time

from ..errors import CentralUnavailableError, ConfigurationError, NotInitializedError
from .deployments import Deployment

_LOG = logging.getLogger(__name__)

_MAX_SECONDS = 600.0
_TERM_SECONDS = 5.0
_MAX_OUTPUT = 8000


class InitProcess:
    """One run of ``ppd-init``; nobody waits for it but who asks.

    Parameters
    ----------
    deployment : `ppd.supervisor.deployments.Deployment`
        What to prepare central for, by its own settings, whatever the
        configuration file says meanwhile.
    day_obs : `int`
        For which day, YYYYMMDD.
    """

    def __init__(self, deployment: Deployment, day_obs: int):
        self.day_obs = day_obs
        self._begun = time.monotonic()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "ppd.cli.init", "--day-obs", str(day_obs)]
        with tempfile.TemporaryFile() as settings:
            settings.write(json.dumps(deployment.settings.to_dict()).encode())
            settings.seek(0)
            self._process = subprocess.Popen(
                [*command, "--settings", "-", "--expect", deployment.id],
                stdin=settings,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                # Of our session: another's would be what a child has left. But a
                # terminal's Ctrl-C is for the supervisor.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    def poll(self) -> tuple[int, str] | None:
        """Return exit code and output once it has ended; it is ended when it takes too long."""
        code = self._process.poll()
        if code is None:
            late = time.monotonic() - self._begun - _MAX_SECONDS
            if late > _TERM_SECONDS:
                self._process.kill()
            elif late > 0.0:
                self._process.terminate()
            return None
        self._output.seek(0)
        text = self._output.read()[-_MAX_OUTPUT:].decode(errors="replace").strip()
        self._output.close()
        for line in text.splitlines():
            _LOG.log(logging.ERROR if code else logging.INFO, "ppd-init for %d: %s", self.day_obs, line)
        return code, text

    def kill(self) -> None:
        """End it; what it has written is complete, or the next one completes it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)


def initialize_now(deployment: Deployment, day_obs: int) -> None:
    """Run ``ppd-init`` and wait for it: at the start, when there is nothing else to do.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a pipeline can't be used.
    ppd.errors.CentralUnavailableError
        Raised if the central repo does not answer.
    ppd.errors.NotInitializedError
        Raised if it failed otherwise.
    """
    process = InitProcess(deployment, day_obs)
    try:
        while (ended := process.poll()) is None:
            time.sleep(0.05)
    finally:
        process.kill()
    code, text = ended
    if code == 2:
        raise ConfigurationError(text)
    if code == 3:
        raise CentralUnavailableError(text)
    if code:
        raise NotInitializedError(f"ppd-init for {day_obs} failed (exit code {code}): {text}")
