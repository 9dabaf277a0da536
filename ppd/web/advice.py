"""What an operator can do about each fault that the supervisor tells."""

from __future__ import annotations

__all__ = ["advise"]

# What a fault begins with (or has in it), what it means for the night, and what to do; the first
# that fits counts.
_ADVICE: tuple[tuple[str, str, str], ...] = (
    (
        "export:",
        "Outputs wait in the spool, on disk: nothing is lost, but no alert products reach central.",
        "ppdctl doctor",
    ),
    ("replica:", "Inputs are read from the primary meanwhile; that is slower, not wrong.", "ppdctl doctor"),
    (
        "init-outputs",
        "Visits of that day wait until ppd-init has prepared it.",
        "ppd-init, as the fault says",
    ),
    (
        "dead letters",
        "Outputs that central refuses were set aside; all others are exported.",
        "ppdctl dead-letters list",
    ),
    (
        "nursery:",
        "No child can be started until it is there; it is started again by itself.",
        "ppdctl doctor; the daemon's log says why",
    ),
    (
        "journal:",
        "No visit is taken: it could be lost. Mostly the disk of state_dir is full.",
        "df -h; ppdctl doctor",
    ),
    (
        "visits from",
        "No visit is heard from there; those that were accepted are processed.",
        "ppdctl doctor",
    ),
    (
        "raws from",
        "Raws from there are not seen; visits wait for them, not for ever.",
        "ppdctl doctor",
    ),
    (
        "the spool",
        "Outputs come faster than central takes them, or the disk is full; when full, no visit is taken.",
        "ppdctl dead-letters list; ppdctl doctor; df -h",
    ),
    (
        "room in the spool",
        "Children hold their outputs until there is room; make room on that file system.",
        "df -h",
    ),
    ("web:", "Only this page is concerned.", "ppdctl config show http_listen"),
)
_ELSE = ("Nobody has written down what helps here.", "ppdctl doctor")


def advise(fault: str) -> dict[str, str]:
    """Say what a fault means and what to do.

    Parameters
    ----------
    fault : `str`
        One of ``faults`` of ``ppdctl status``.

    Returns
    -------
    advice : `dict` [ `str`, `str` ]
        ``text``, the fault itself; ``meaning``; ``command``, what to run.
    """
    meaning, command = next(
        ((meaning, command) for mark, meaning, command in _ADVICE if mark in fault), _ELSE
    )
    return {"text": fault, "meaning": meaning, "command": command}
