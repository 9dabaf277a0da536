"""Whether alerts flow, in words: what the page says at its top."""

from __future__ import annotations

__all__ = ["judge"]

from collections.abc import Mapping, Sequence
from typing import Any

_OVER = ("exported", "failed")
# So many alert deadlines after the last raw a visit that is not over is stuck.
_STUCK = 2.0
# A telescope that sends nothing for so long does something else.
_QUIET_SECONDS = 600.0


def judge(
    visits: Sequence[Mapping[str, Any]],
    faults: Sequence[str],
    unready: Sequence[str],
    paused: bool,
    draining: bool,
    alert_deadline: float,
    now: float,
) -> dict[str, Any]:
    """Judge whether alerts flow.

    Parameters
    ----------
    visits : sequence of `dict`
        The last visits, oldest first; see `ppd.supervisor.overview.describe_detectors`.
    faults : sequence of `str`
        What the supervisor calls faults.
    unready : sequence of `str`
        Why no visit would be taken.
    paused : `bool`
        Whether that is an operator's will.
    draining : `bool`
        Whether ppd was told to finish what it has.
    alert_deadline : `float`
        Seconds from raw to alerts.
    now : `float`
        Unix seconds.

    Returns
    -------
    verdict : `dict`
        ``level`` (``ok``, ``idle``, ``paused``, ``warning`` or ``trouble``),
        ``words``, ``detail``, and ``since``, Unix seconds, of the last
        export, if there was one.
    """
    exports = [v["exported"] for v in visits if v["exported"] is not None]
    since = max(exports, default=None)
    level, words, detail = _judge(visits, faults, [] if draining else unready, paused, alert_deadline, now)
    if draining:
        level, words = "paused", "Told to finish, no more visits are taken"
    return {"level": level, "words": words, "detail": detail, "since": since}


def _judge(
    visits: Sequence[Mapping[str, Any]],
    faults: Sequence[str],
    unready: Sequence[str],
    paused: bool,
    alert_deadline: float,
    now: float,
) -> tuple[str, str, str]:
    if paused:
        return "paused", "Paused by an operator", f"no visit is taken: {unready[0]}" if unready else ""
    if unready:
        return "trouble", "No visit is taken", "; ".join(unready)
    late = _STUCK * alert_deadline
    stuck = [v for v in visits if v["raw"] is not None and v["raw"] + late < now and _unfinished(v)]
    if stuck:
        count = sum(map(_unfinished, stuck))
        names = "visit " + stuck[0]["group"] if len(stuck) == 1 else f"{len(stuck)} visits"
        return (
            "trouble",
            "Alerts do not flow",
            f"{count} detectors of {names} had their raws more than {late:.0f} s ago and are not exported",
        )
    over = [v for v in visits if v["over"] is not None]
    if not over:
        return _at_first(visits, faults)
    last, current = over[-1], visits[-1]
    exported, failed, total = _count(last, "exported"), _count(last, "failed"), sum(last["states"].values())
    if not exported:
        return "trouble", "Alerts do not flow", f"all {total} detectors of visit {last['group']} failed"
    what = f"{exported} of {total} detectors of visit {last['group']} exported"
    so_far = 0 if current is last else _count(current, "failed")
    lacks = [f"{failed} failed"] if failed else []
    missed = last["alerts"].get("late", 0)
    lacks += [f"{missed} late"] if missed else []
    lacks += [f"and {so_far} of the visit at work failed"] if so_far else []
    if lacks:
        words = "Alerts flow, not from all detectors" if failed or so_far else "Alerts flow, late"
        return "warning", words, f"{what}, {', '.join(lacks)}"
    if faults:
        return "warning", "Alerts flow, with a fault", what
    if last is current and last["over"] + _QUIET_SECONDS < now:
        return "idle", "No visits", f"the last one is long over: {what}"
    return "ok", "Alerts flow", what


def _at_first(visits: Sequence[Mapping[str, Any]], faults: Sequence[str]) -> tuple[str, str, str]:
    if faults:
        return "warning", "Ready, with a fault", "no visit is over yet"
    if visits:
        return "ok", "The first visits are at work", "none is over yet"
    return "idle", "Ready", "no visit has come yet"


def _count(visit: Mapping[str, Any], state: str) -> int:
    return int(visit["states"].get(state, 0))


def _unfinished(visit: Mapping[str, Any]) -> int:
    return sum(count for state, count in visit["states"].items() if state not in _OVER)
