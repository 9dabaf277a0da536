"""What an operator can do about each fault that the supervisor tells."""

from __future__ import annotations

__all__ = ["REMEDIES", "Remedy", "advise"]

from typing import NamedTuple


class Remedy(NamedTuple):
    """What helps when a part of ppd is in trouble."""

    meaning: str
    """What it means for the night."""
    command: str
    """What to run."""


REMEDIES = {
    "export": Remedy(
        "Outputs wait in the spool, on disk: nothing is lost, but no alert products reach central.",
        "ppdctl doctor",
    ),
    "central": Remedy(
        "Visits wait for their inputs, and outputs in the spool; it goes on by itself when central is back.",
        "ppdctl doctor",
    ),
    "replica": Remedy(
        "Inputs are read from the primary meanwhile; that is slower, not wrong.", "ppdctl doctor"
    ),
    "init_outputs": Remedy(
        "Visits of that day wait until ppd-init has prepared it.", "ppd-init, as the fault says"
    ),
    "spool": Remedy(
        "Outputs come faster than central takes them, or the disk is full: children wait with theirs for"
        " room, and when it is full, no visit is taken.",
        "ppdctl dead-letters list; ppdctl doctor; df -h",
    ),
    "dead_letters": Remedy(
        "Outputs that central refuses were set aside; all others are exported.", "ppdctl dead-letters list"
    ),
    "nursery": Remedy(
        "No child can be started until it is there; it is started again by itself.",
        "ppdctl doctor; the daemon's log says why",
    ),
    "journal": Remedy(
        "No visit is taken: it could be lost. Mostly the disk of state_dir is full.", "df -h; ppdctl doctor"
    ),
    "raws": Remedy("Raws from there are not seen; visits wait for them, not for ever.", "ppdctl doctor"),
    "visits": Remedy(
        "No visit is heard from there; those that were accepted are processed.", "ppdctl doctor"
    ),
    "web": Remedy("Only this page is concerned, and /metrics.", "ppdctl config show http_listen"),
}
"""By component, as `ppd.supervisor.faults.COMPONENTS` has them."""

# The page must not go dark because somebody has forgotten one; a test sees that nobody has.
_ELSE = Remedy("Nobody has written down what helps here.", "ppdctl doctor")


def advise(component: str, text: str) -> dict[str, str]:
    """Say what a fault means and what to do.

    Parameters
    ----------
    component : `str`
        Which part of ppd it is of.
    text : `str`
        What it is, for people.

    Returns
    -------
    advice : `dict` [ `str`, `str` ]
        ``component`` and ``text`` as given; ``meaning``; ``command``, what to run.
    """
    remedy = REMEDIES.get(component, _ELSE)
    return {"component": component, "text": text, "meaning": remedy.meaning, "command": remedy.command}
