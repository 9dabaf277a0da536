"""Accounting for the soak: every detector-visit, every output, every row of the APDB."""

from __future__ import annotations

__all__ = ["ALLOWED", "Account", "account_for", "history"]

import contextlib
import dataclasses
import hashlib
import json
import re
import sqlite3
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .soak_faults import Window
from .soak_site import Site
from .soak_storm import Fate, Storm
from .soak_verdict import (
    PREPROCESSED,
    REQUIRED,
    CentralContents,
    End,
    find_orphans,
    query,
    read_apdb,
    read_ends,
    shorten,
)

# How long after its end a fault may still make itself felt, seconds.
_AFTER = 30.0
_THRESHOLD = 5000.0
_DEATH = (
    r"SIGKILL|SIGTERM|not heard of for too long|the APDB has sources|its child ended|"
    r"ppd ended before|before it said why|(?:expired|stale|took longer)"
)
_PAUSE = r"not heard of for too long|SIGKILL|no usable raw came \(none|the APDB has sources|took longer"
_DATABASE = (
    r"APDB|OperationalError|InterfaceError|DatabaseError|connection|server closed|terminat|"
    r"shutting down|starting up|recovery mode"
)
_DISK = r"No space left|disk is full|disk full|disk I/O|OSError|unable to open|readonly|APDB has sources"
# Reasons for a failure that follow from each fault.
ALLOWED: dict[str, str] = {
    "kill supervisor": _DEATH,
    "kill nursery": _DEATH,
    "kill exporter": _DEATH,
    "kill child": _DEATH,
    "stop supervisor": _PAUSE,
    "stop nursery": _PAUSE,
    "stop exporter": _PAUSE,
    "stop child": _PAUSE,
    "terminate connections": _DATABASE,
    "restart PostgreSQL": _DATABASE,
    "crash PostgreSQL": _DATABASE,
    "full disk": _DISK,
    "slow disk": _PAUSE,
    "clock step": r"expired|stale",
}


@dataclasses.dataclass
class Account:
    """What became of all; lists have what is wrong, by detector-visit and in a line each."""

    detector_visits: int = 0
    accounted: int = 0
    outputs_made: int = 0
    outputs_in_central: int = 0
    lost: list[tuple[tuple[str, int], str]] = dataclasses.field(default_factory=list)
    """Accepted, and neither in central as it must be nor failed with a reason that its faults allow; or
    handed over and not in central."""
    duplicated: list[tuple[tuple[str, int], str]] = dataclasses.field(default_factory=list)
    corrupt: list[tuple[tuple[str, int], str]] = dataclasses.field(default_factory=list)
    apdb_duplicates: list[tuple[tuple[str, int], str]] = dataclasses.field(default_factory=list)
    orphans: list[str] = dataclasses.field(default_factory=list)
    """Files in central that no dataset has."""
    unwatched: int = 0
    """Outputs in central whose hand-over was gone before it was seen in the spool."""
    ends: dict[str, int] = dataclasses.field(default_factory=dict)
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    """Why good raws failed, counted."""


def account_for(site: Site, storm: Storm) -> Account:
    """Compare what was sent, seen in the spool, and is in journal, central and APDB; ppd has ended.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        The site.
    storm : `bench.soak_storm.Storm`
        What was done and seen.

    Returns
    -------
    account : `Account`
        The account.
    """
    account = Account()
    ends, central, stores = read_ends(site), CentralContents(site, with_images=True), read_apdb(site)
    without = _read_preprocessing(site)
    _check_files(account, site, storm, central)
    accepted = {
        (s.group, d)
        for s in storm.submitter.all
        for d in s.detectors
        if s.purpose != "stale" and s.code in ("accepted", "duplicate")
    }
    account.detector_visits = len(accepted)
    states: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for key in sorted(accepted):
        fate, end = storm.fates[key], ends.get(key, End("unknown", 0, "", 0))
        rows = stores.get((fate.visit.exposure, fate.detector), {})
        states[end.state] += 1
        account.accounted += _judge(
            account, fate, end, storm.faults.windows, central, rows, without.get(key, "")
        )
        if end.state == "failed" and fate.plan.expect != "fail":
            reasons[shorten(end.reason, 200)] += 1
    for group, detector in sorted(set(ends) - accepted):
        if (group, detector) not in storm.fates:
            account.lost.append(((group, detector), f"{group}/{detector}: nobody announced it"))
    account.orphans = [o for o in find_orphans(site) if o.endswith("no dataset's")]
    account.ends, account.reasons = dict(states), dict(reasons.most_common(60))
    return account


def _judge(
    account: Account,
    fate: Fate,
    end: End,
    windows: list[Window],
    central: CentralContents,
    rows: dict[int, int],
    without: str,
) -> bool:
    """Judge a detector-visit; return whether its end is known and right.

    ``without`` is why its main pipeline went on without pre-processing, if it did.
    """
    key, plan = fate.key, fate.plan
    what = f"{key[0]}/{key[1]} (raw {plan.kind}): {end.state} at attempt {end.attempt}"
    what += f", {end.reason[:400]!r}" if end.reason else ""
    before = len(account.lost)

    def lose(why: str) -> None:
        account.lost.append((key, f"{what}; {why}"))

    missing = REQUIRED - central.types.get(key, set())
    if without and _is_allowed(fate, without, windows):
        missing -= PREPROCESSED
    if central.twice.get(key):
        account.duplicated.append((key, f"{what}; central has twice: {', '.join(central.twice[key])}"))
    if len(rows) > 1 or (plan.exact and any(n > plan.sources for n in rows.values())):
        account.apdb_duplicates.append((key, f"{what}; rows in the APDB by process: {rows}"))
    if end.state == "exported":
        if missing:
            lose(f"central lacks {', '.join(sorted(missing))}")
        if plan.expect == "fail":
            lose("it had to fail")
        if plan.exact and sum(rows.values()) != plan.sources and len(rows) <= 1:
            lose(f"the APDB has {sum(rows.values())} of {plan.sources} sources")
        if end.exports > 1:
            # The journal may say so again after a restart; central may not have it twice.
            what += f"; exported {end.exports} times"
    elif end.state == "failed":
        if plan.expect == "succeed" and not _is_allowed(fate, end.reason, windows):
            lose("no fault that it met leads to this")
        # It may have all its outputs: who was killed while handing over, after its
        # store, fails for good, and what it had made is exported (docs/failures.md).
        if "soak_summary" in central.types.get(key, set()) and not rows:
            lose("central says that it was stored, the APDB has nothing")
    else:
        lose("its end is not known")
    return len(account.lost) == before


def _read_preprocessing(site: Site) -> dict[tuple[str, int], str]:
    """Read why the last pre-processing of detector-visits failed, of those where it did."""
    rows = _ask_journal(
        site,
        "SELECT group_name, detector, detail FROM event WHERE name='preprocess_end' ORDER BY id",
    )
    last = {(group, detector): json.loads(detail) for group, detector, detail in rows}
    return {key: str(detail["reason"]) for key, detail in last.items() if not detail["success"]}


def _ask_journal(site: Site, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
    path = site.settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        return journal.execute(statement, values).fetchall()


def _is_allowed(fate: Fate, reason: str, windows: list[Window]) -> bool:
    over = fate.over if fate.over is not None else float("inf")
    return any(
        w.begin <= over
        and (w.end is None or w.end + _AFTER >= fate.begun)
        and re.search(ALLOWED[w.fault.kind], reason)
        for w in windows
    )


def _check_files(account: Account, site: Site, storm: Storm, central: CentralContents) -> None:
    """Compare each file that was handed over with the one in central."""
    made = storm.watch.made
    rows = query(site.registry_url, "SELECT dataset_id, path FROM file_datastore_records")
    paths = {uuid.UUID(str(dataset)): site.central / str(path) for dataset, path in rows}
    ours = set(central.keys)
    account.outputs_made = len(ours | set(made))
    account.outputs_in_central = len(ours)
    account.unwatched = len(ours - set(made))
    gone: dict[str, list[uuid.UUID]] = {}
    for dataset in set(made) - ours:
        gone.setdefault(made[dataset].entry, []).append(dataset)
    for entry, datasets in sorted(gone.items()):
        where = [f for f in ("ready", "dead-letters") if (site.settings.spool_dir / f / entry).exists()]
        text = f"{entry}: {len(datasets)} outputs were handed over and are not in central"
        account.lost.append((_key_of(entry, storm), text + (f"; they are in {where[0]}" if where else "")))
    for dataset, key in central.keys.items():
        path = paths.get(dataset)
        fault = ""
        if path is None or not path.exists():
            fault = f"{path or dataset} is not there"
        elif dataset in made and made[dataset].sha256 not in (None, _digest(path)):
            fault = f"{path} is not what {made[dataset].entry} had"
        if fault:
            account.corrupt.append((key, fault))
    for key, fate in storm.fates.items():
        if fate.plan.exact:
            fault = _wrong_content(fate, central.summaries.get(key), central.images.get(key))
            if fault:
                account.corrupt.append((key, f"{key[0]}/{key[1]}: {fault}"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wrong_content(fate: Fate, summary: dict[str, Any] | None, image: np.ndarray | None) -> str:
    plan = fate.plan
    if summary is not None and (summary["sources"], summary["flux"]) != (plan.sources, plan.flux):
        return f"its summary is {summary}, {plan.sources} sources of {plan.flux} went in"
    if image is not None and plan.expect != "fail":
        bright = image[image > _THRESHOLD].astype(float)
        if (len(bright), float(np.sum(bright))) != (plan.sources, plan.flux):
            return (
                f"its image has {len(bright)} sources of {np.sum(bright)}, not {plan.sources} of {plan.flux}"
            )
    return ""


def _key_of(entry: str, storm: Storm) -> tuple[str, int]:
    """Whose a hand-over is, by its name: instrument, group, detector, attempt."""
    for group, detector in storm.fates:
        if group in entry and re.search(rf"{re.escape(group)}\D+{detector}\D", entry + "-"):
            return group, detector
    return entry, -1


def history(site: Site, key: tuple[str, int]) -> list[str]:
    """Tell what journal and log have of a detector-visit.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        The site.
    key : `tuple`
        Group and detector.

    Returns
    -------
    lines : `list` [ `str` ]
        Its events, and the last lines of the log that name it.
    """
    rows = _ask_journal(
        site,
        "SELECT t, name, detail FROM event"
        " WHERE group_name=? AND (detector=? OR detector IS NULL) ORDER BY id",
        key,
    )
    lines = [f"{t:.3f} {name} {json.dumps(json.loads(detail))[:300]}" for t, name, detail in rows]
    named = [line for line in site.log.read_text(errors="replace").splitlines() if key[0] in line]
    return lines + [line[:300] for line in named[-8:]]
