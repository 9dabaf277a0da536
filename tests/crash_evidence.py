"""What a site's journal, spool, central repo and APDB say of its visits, and whether it is the same."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, CollectionType, DatasetRef

from bench.demo_visit import DemoVisit
from bench.soak_raws import RawPlan
from ppd.checksums import checksum_of
from ppd.config import Settings
from ppd.demo.camera import INSTRUMENT

FORGED = "forged-"
"""What the names of hand-overs begin with that no child has made."""

_OF_GROUP = ("regionTimeInfo", "soak_predicted")
_OF_EXPOSURE = ("soak_image",)
_OF_VISIT = ("soak_sources", "soak_summary")
_REQUIRED = frozenset((*_OF_GROUP, *_OF_EXPOSURE, *_OF_VISIT))
_LOOK_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Visit:
    """A visit that is played."""

    plan: DemoVisit
    raws: dict[int, RawPlan]
    """By detector."""

    @property
    def group(self) -> str:
        return self.plan.group

    def subject(self, detector: int) -> str:
        """What the child of a detector is about."""
        return f"{self.group}/{detector}"


@dataclasses.dataclass(frozen=True)
class End:
    """What the journal says of a detector-visit."""

    state: str
    attempt: int
    reason: str

    @property
    def over(self) -> bool:
        return self.state in ("exported", "failed")


@dataclasses.dataclass(frozen=True)
class HandedOver:
    """What was in the spool: each file's checksum by dataset."""

    entry: str
    key: tuple[str, int]
    checksums: dict[str, str]
    wrong: tuple[str, ...]
    """Files of which its manifest has another checksum, or none."""


class SpoolWatch:
    """Looks at each hand-over while it is in the spool."""

    def __init__(self, spool: Path):
        self._ready = spool / "ready"
        self._seen: set[tuple[str, int]] = set()
        self._stop = threading.Event()
        self.keep: Path | None = None
        """Folder for copies of hand-overs, if they are wanted."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.found: list[HandedOver] = []
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                for entry in self._ready.iterdir():
                    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        file = entry / "manifest.json"
        who = (entry.name, file.stat().st_ino)
        if who in self._seen or entry.name.startswith(FORGED):
            return
        manifest = json.loads(file.read_text())
        sums, wrong = {}, []
        for dataset in manifest["datasets"]:
            data = (entry / dataset["path"]).read_bytes()
            sums.update(dict.fromkeys(dataset["refs"], _checksum(data)))
            if manifest["checksums"].get(dataset["path"]) != checksum_of(data):
                wrong.append(dataset["path"])
        if self.keep is not None:
            shutil.copytree(entry, self.keep / entry.name, dirs_exist_ok=True)
        key = manifest["key"]
        self.found.append(HandedOver(entry.name, (key["group"], key["detector"]), sums, tuple(wrong)))
        self._seen.add(who)


class Evidence:
    """What can be seen from outside.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Of the ppd that is looked at.
    apdb : `pathlib.Path`
        The APDB's database.
    """

    def __init__(self, settings: Settings, apdb: Path):
        self._central = Path(settings.central_repo)
        self._journal_file = settings.state_dir / "journal.sqlite3"
        self._apdb = apdb
        self._reader: Butler | None = None
        self.watch = SpoolWatch(settings.spool_dir)
        self.dead_letters: set[str] = set()
        """Names of hand-overs that can't be exported."""

    def close(self) -> None:
        self.watch.close()
        if self._reader is not None:
            self._reader.close()

    def ends(self, visit: Visit) -> dict[int, End]:
        """What the journal says, by detector."""
        query = "SELECT detector, state, attempt, reason FROM detector_visit WHERE group_name=?"
        return {d: End(s, a, r or "") for d, s, a, r in self._journal(query, visit.group)}

    def faults(self, visit: Visit) -> list[str]:
        """What is wrong with a visit that is over: journal, central and APDB must say the same."""
        faults = []
        ends = self.ends(visit)
        for detector, raw in visit.raws.items():
            who, end = visit.subject(detector), ends[detector]
            refs = self._datasets(visit, detector)
            outputs = self._handed_over((visit.group, detector))
            if any(o.entry in self.dead_letters for o in outputs):
                faults += [f"{who}: central has {r} of what was set aside" for r in refs]
                continue
            types = Counter(ref.datasetType.name for ref in refs)
            stores = self._stores(visit, detector)
            faults += [f"{who}: central has {n} of {t}" for t, n in types.items() if n > 1]
            faults += self._compare(who, refs, outputs)
            if len(stores) > 1 or sum(stores.values()) not in (0, raw.sources):
                faults.append(f"{who}: the APDB has {stores} of {raw.sources} sources")
            if end.state == "exported":
                if _REQUIRED - types.keys():
                    faults.append(f"{who}: central lacks {sorted(_REQUIRED - types.keys())}")
                if not stores:
                    faults.append(f"{who}: it is exported, and the APDB has nothing of it")
            elif stores and "soak_sources" not in types:
                faults.append(f"{who}: the APDB has it and central has only {sorted(types)}: {end}")
            for ref in refs:
                if ref.datasetType.name == "soak_summary":
                    summary = self._butler().get(ref)
                    if (summary["sources"], summary["flux"]) != (raw.sources, raw.flux):
                        faults.append(f"{who}: {summary} instead of {raw.sources} sources with {raw.flux}")
        return faults

    def _compare(self, who: str, refs: list[DatasetRef], outputs: list[HandedOver]) -> Iterator[str]:
        """Compare what central has with what was handed over, by UUID and checksum."""
        if len(outputs) > 1:
            yield f"{who}: was handed over {len(outputs)} times"
        handed = {i: s for output in outputs for i, s in output.checksums.items()}
        for output in outputs:
            if output.wrong:
                yield f"{who}: its manifest has other checksums of {output.wrong}"
        files = self._files()
        for ref in refs:
            if str(ref.id) not in handed:
                yield f"{who}: central has {ref}, which was not handed over"
        for i, checksum in handed.items():
            if i not in files:
                yield f"{who}: {i} was handed over, and central has it not"
            elif _checksum((self._central / files[i]).read_bytes()) != checksum:
                yield f"{who}: {i} has other bytes in central"

    def _handed_over(self, key: tuple[str, int]) -> list[HandedOver]:
        return [h for h in list(self.watch.found) if h.key == key]

    def _butler(self) -> Butler:
        if self._reader is None:
            self._reader = Butler.from_config(str(self._central), writeable=False)
        return self._reader

    def _files(self) -> dict[str, str]:
        """Path of each dataset that central has, by UUID."""
        path = self._central / "gen3.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as database:
            rows = database.execute("SELECT dataset_id, path FROM file_datastore_records").fetchall()
        assert len({i for i, _ in rows}) == len({p for _, p in rows}) == len(rows)
        return {str(uuid.UUID(i)): p for i, p in rows}

    def orphans(self) -> set[str]:
        """Files in central's runs that no dataset has."""
        runs = self._central / INSTRUMENT / "prompt"
        on_disk = {str(p.relative_to(self._central)) for p in runs.rglob("*") if p.is_file()}
        return on_disk - set(self._files().values())

    def _datasets(self, visit: Visit, detector: int) -> list[DatasetRef]:
        """Find what central has of the required types."""
        butler = self._butler()
        butler.registry.refresh()
        runs = sorted(
            butler.collections.query(f"{INSTRUMENT}/prompt/*", collection_types={CollectionType.RUN})
        )
        found: list[DatasetRef] = []
        base = {"instrument": INSTRUMENT, "detector": detector}
        for names, data_id in (
            (_OF_GROUP, {**base, "group": visit.group}),
            (_OF_EXPOSURE, {**base, "exposure": visit.plan.exposure}),
            (_OF_VISIT, {**base, "visit": visit.plan.exposure}),
        ):
            for name in names:
                # Before the first export of all, central does not know the type or the data ID.
                with contextlib.suppress(LookupError):
                    found += butler.query_datasets(
                        name, collections=runs, find_first=False, data_id=data_id, explain=False
                    )
        return found

    def _stores(self, visit: Visit, detector: int) -> dict[int, int]:
        """Number of sources in the APDB by process that stored them."""
        query = (
            'SELECT "diaSourceId" >> 12, count(*) FROM "DiaSource" WHERE visit=? AND detector=? GROUP BY 1'
        )
        with contextlib.closing(sqlite3.connect(self._apdb, timeout=30.0)) as apdb:
            return dict(apdb.execute(query, (visit.plan.exposure, detector)).fetchall())

    def _journal(self, query: str, *values: Any) -> list[Any]:
        path = self._journal_file
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as journal:
            return journal.execute(query, values).fetchall()

    def strangers(self, visits: Iterable[Visit]) -> set[tuple[str, int]]:
        """Detector-visits in the journal that nobody announced."""
        known = {(v.group, d) for v in visits for d in v.raws}
        return set(self._journal("SELECT group_name, detector FROM detector_visit")) - known


def _checksum(data: bytes) -> str:
    """By another algorithm than ppd's."""
    return hashlib.sha256(data).hexdigest()
