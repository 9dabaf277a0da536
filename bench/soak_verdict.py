"""Judging the soak by what the journal, the central repo, the APDB and the disks hold."""

from __future__ import annotations

__all__ = [
    "PREPROCESSED",
    "REQUIRED",
    "CentralContents",
    "End",
    "Verdict",
    "find_orphans",
    "judge",
    "query",
    "read_apdb",
    "read_ends",
    "shorten",
]

import contextlib
import dataclasses
import re
import sqlite3
import uuid
from collections import Counter, defaultdict
from typing import Any

import sqlalchemy
from lsst.daf.butler import Butler, CollectionType, DatasetRef

from ppd.demo.camera import INSTRUMENT

from .soak_kills import Doom, Executioner
from .soak_play import DetectorFate
from .soak_site import Site

# Of a path, the name tells enough.
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/]+/)+")
_TASKS = ("soakIsr", "soakMeasure", "soakStore", "soakPredict")
REQUIRED = frozenset(
    {
        "soak_predicted",
        "soak_image",
        "soak_sources",
        "soak_summary",
        *(f"{task}_{what}" for task in _TASKS for what in ("log", "metadata")),
    }
)
PREPROCESSED = frozenset({"soak_predicted", "soakPredict_log", "soakPredict_metadata"})
"""Those of them that pre-processing makes: the main pipeline can do without."""


@dataclasses.dataclass
class Verdict:
    """What became of the detector-visits; lists have what is wrong, one line each."""

    succeeded: int = 0
    failed_expected: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    """Without a known end, or exported and not all in central."""
    duplicated: list[str] = dataclasses.field(default_factory=list)
    """In central or in the APDB twice."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """Failed and had to succeed, or the other way round."""
    inconsistent: list[str] = dataclasses.field(default_factory=list)
    """Journal, central and APDB do not say the same."""
    unsaid: list[str] = dataclasses.field(default_factory=list)
    """Killed once too often after they were stored, and the reason does not say that the APDB has them."""
    orphans: list[str] = dataclasses.field(default_factory=list)
    """Files in central's folders that no dataset has, or of another size than they should."""
    outcomes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """End by kind of raw, and by kind of kill."""
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    """Why detector-visits failed, counted."""


@dataclasses.dataclass(frozen=True)
class End:
    """What the journal says of a detector-visit."""

    state: str
    attempt: int
    reason: str
    exports: int
    """How often the journal says that it was exported."""


class CentralContents:
    """What the central repo has of each detector-visit.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        The site.
    with_images : `bool`, optional
        Whether to read the images, too.
    """

    def __init__(self, site: Site, with_images: bool = False):
        self.types: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.twice: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.summaries: dict[tuple[str, int], dict[str, Any]] = {}
        self.images: dict[tuple[str, int], Any] = {}
        """Pixels of each image."""
        self.keys: dict[uuid.UUID, tuple[str, int]] = {}
        """Whose each dataset is."""
        with Butler.from_config(str(site.central), writeable=False) as butler:
            runs = butler.collections.query(f"{INSTRUMENT}/prompt/*", collection_types={CollectionType.RUN})
            groups = {
                int(record.id): str(record.group) for record in butler.query_dimension_records("exposure")
            }
            known: Counter[tuple[str, tuple]] = Counter()
            for info in butler.collections.query_info(sorted(runs), include_summary=True):
                for name in sorted(info.dataset_types or ()):
                    if "detector" not in butler.get_dataset_type(name).dimensions:
                        continue
                    for ref in butler.query_datasets(
                        name, collections=info.name, find_first=False, explain=False, limit=None
                    ):
                        self._add(ref, groups, known)
                        if name == "soak_summary":
                            self.summaries[self._key(ref, groups)] = butler.get(ref)
                        elif name == "soak_image" and with_images:
                            self.images[self._key(ref, groups)] = butler.get(ref).array

    def _key(self, ref: DatasetRef, groups: dict[int, str]) -> tuple[str, int]:
        data_id = ref.dataId.mapping
        # A visit has the ID of its one exposure.
        exposure = data_id.get("exposure", data_id.get("visit"))
        group = str(data_id["group"]) if exposure is None else groups[int(exposure)]
        return group, int(data_id["detector"])

    def _add(self, ref: DatasetRef, groups: dict[int, str], known: Counter[tuple[str, tuple]]) -> None:
        key = self._key(ref, groups)
        identity = (ref.datasetType.name, tuple(sorted(ref.dataId.required.items())))
        if ref.datasetType.name == "prompt_provenance":  # each pipeline has one, in its own run
            identity = (ref.run, identity[1])
        known[identity] += 1
        self.keys[ref.id] = key
        self.types[key].add(ref.datasetType.name)
        if known[identity] > 1:
            self.twice[key].append(ref.datasetType.name)


def judge(site: Site, fates: dict[tuple[str, int], DetectorFate], executioner: Executioner) -> Verdict:
    """Judge; ppd has ended.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        The site.
    fates : `dict`
        What was done to each detector-visit.
    executioner : `bench.soak_kills.Executioner`
        Knows who was killed.

    Returns
    -------
    verdict : `Verdict`
        The verdict.
    """
    verdict = Verdict()
    ends, central, stores = read_ends(site), CentralContents(site), read_apdb(site)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    for key, fate in fates.items():
        end = ends.get(key, End("unknown", 0, "", 0))
        hits = [d for d in executioner.of(key) if d.outcome == "hit"]
        _judge_one(verdict, fate, end, hits, central, stores.get((fate.visit.exposure, fate.detector), {}))
        outcomes[f"raw {fate.plan.kind}"][end.state] += 1
        for doom in hits:
            outcomes[f"{doom.signum.name} {doom.stage}"][end.state] += 1
            outcomes[f"after {doom.after}"][end.state] += 1
        if end.reason and end.state == "failed":
            reasons[shorten(end.reason, 120)] += 1
    strangers = set(ends) - set(fates)
    verdict.inconsistent += [f"{g}/{d}: nobody announced it" for g, d in sorted(strangers)]
    verdict.orphans = find_orphans(site)
    verdict.outcomes = {k: dict(v) for k, v in sorted(outcomes.items())}
    verdict.reasons = dict(reasons.most_common(40))
    return verdict


def _judge_one(
    verdict: Verdict,
    fate: DetectorFate,
    end: End,
    hits: list[Doom],
    central: CentralContents,
    stores: dict[int, int],
) -> None:
    key, plan = fate.key, fate.plan
    story = ", ".join(f"{d.signum.name} in {d.stage} (after {d.after})" for d in hits)
    what = f"{key[0]}/{key[1]} (raw {plan.kind}{'; ' + story if story else ''}): {end.state}"
    what += f" at attempt {end.attempt}" + (f", {end.reason[:300]!r}" if end.reason else "")
    missing = REQUIRED - central.types.get(key, set())
    if end.state not in ("exported", "failed"):
        verdict.lost.append(what)
    elif end.state == "exported" and missing:
        verdict.lost.append(f"{what}; central lacks {', '.join(sorted(missing))}")
    if central.twice.get(key):
        verdict.duplicated.append(f"{what}; central has twice: {', '.join(central.twice[key])}")
    if len(stores) > 1:
        verdict.duplicated.append(f"{what}; the APDB has it {len(stores)} times")
    if end.exports > 1:
        verdict.duplicated.append(f"{what}; the journal has it exported {end.exports} times")
    if end.state == "exported":
        verdict.succeeded += 1
        if plan.expect == "fail":
            verdict.wrong.append(f"{what}; it had to fail")
        _check_success(verdict, fate, what, central, stores)
    elif end.state == "failed":
        # What was stored may not be made again; whom death meets twice has no third try.
        allowed = plan.expect != "succeed" or (hits and stores) or len(hits) > 1
        if allowed:
            verdict.failed_expected += 1
        else:
            verdict.wrong.append(f"{what}; it had to succeed; the APDB has it {len(stores)} times")
        if stores and not hits:
            verdict.inconsistent.append(f"{what}; nobody killed it, and the APDB has it")
        if stores and hits and "APDB" not in end.reason:
            kind = verdict.unsaid if len(hits) > 1 else verdict.inconsistent
            kind.append(f"{what}; the APDB has it, and the reason does not say so")
        if "soak_summary" in central.types.get(key, set()) and not stores:
            verdict.inconsistent.append(f"{what}; central says that it was stored, the APDB has nothing")


def _check_success(
    verdict: Verdict, fate: DetectorFate, what: str, central: CentralContents, stores: dict[int, int]
) -> None:
    plan = fate.plan
    if not plan.exact:
        return
    if list(stores.values()) != [plan.sources]:
        verdict.inconsistent.append(f"{what}; the APDB has {list(stores.values())} of {plan.sources} sources")
    summary = central.summaries.get(fate.key)
    if summary is not None and (summary["sources"], summary["flux"]) != (plan.sources, plan.flux):
        verdict.inconsistent.append(f"{what}; {summary} of {plan.sources} sources with {plan.flux}")


def read_ends(site: Site) -> dict[tuple[str, int], End]:
    """Read what the journal has of each detector-visit."""
    path = site.settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        exports: Counter[tuple[str, int]] = Counter(
            journal.execute("SELECT group_name, detector FROM event WHERE name='exported'").fetchall()
        )
        rows = journal.execute("SELECT group_name, detector, state, attempt, reason FROM detector_visit")
        return {
            (group, detector): End(state, attempt, reason or "", exports[group, detector])
            for group, detector, state, attempt, reason in rows
        }


def read_apdb(site: Site) -> dict[tuple[int, int], dict[int, int]]:
    """Count rows by visit and detector, and by the process that stored them."""
    found: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    text = 'SELECT visit, detector, "diaSourceId" >> 12, count(*) FROM "DiaSource" GROUP BY 1, 2, 3'
    for visit, detector, process, count in query(site.apdb_url, text):
        found[visit, detector][process] = count
    return found


def query(url: str, text: str) -> list[Any]:
    """Ask a database that nobody changes."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.execute(sqlalchemy.text(text)))
    finally:
        engine.dispose()


def find_orphans(site: Site) -> list[str]:
    """Compare the files of the runs with the datastore's records."""
    rows = query(site.registry_url, "SELECT path, file_size FROM file_datastore_records")
    records = {str(path): int(size) for path, size in rows}
    faults = []
    for path, size in records.items():
        file = site.central / path
        if not file.exists():
            faults.append(f"{path} is not there")
        elif size >= 0 and file.stat().st_size != size:
            faults.append(f"{path} has {file.stat().st_size} bytes instead of {size}")
    runs = site.central / INSTRUMENT / "prompt"
    on_disk = {str(p.relative_to(site.central)) for p in runs.rglob("*") if p.is_file()}
    return faults + [f"{path} is no dataset's" for path in sorted(on_disk - records.keys())]


def shorten(reason: str, limit: int) -> str:
    """Leave out what is different each time and on each machine, so that reasons can be counted.

    Parameters
    ----------
    reason : `str`
        Why a detector-visit failed.
    limit : `int`
        Characters of what is kept.
    """
    names = _FOLDERS.sub("", reason[: limit + limit // 3])
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in names.split())[:limit]
