"""What is wrong with the supervisor now, each with the part of it that is concerned."""

from __future__ import annotations

__all__ = ["COMPONENTS", "Ailment", "ailments"]

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .daemon import Supervisor

COMPONENTS = {
    "export": "outputs don't reach the central repo",
    "central": "the central repo does not answer; inputs are asked for again and again",
    "replica": "the read replica does not answer; the primary is asked instead",
    "init_outputs": "the central repo is not prepared for a night",
    "spool": "outputs that wait for export take too much room",
    "dead_letters": "outputs were set aside because central does not take them",
    "nursery": "no child can be forked",
    "journal": "what happens can't be written down, and no visit is taken",
    "raws": "a source of raws is in trouble",
    "visits": "a source of visits is in trouble",
    "web": "the status page and /metrics are not served",
}
"""All that can be in trouble, and what it means then."""


@dataclasses.dataclass(frozen=True)
class Ailment:
    """Something that is wrong now."""

    component: str
    """One of `COMPONENTS`."""
    text: str
    """What it is, for people."""


def ailments(supervisor: Supervisor) -> list[Ailment]:
    """Say what is wrong now.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    ailments : `list` [ `Ailment` ]
        One component can have several.
    """
    return [Ailment(component, text) for component, text in _look(supervisor)]


def _look(supervisor: Supervisor) -> Iterator[tuple[str, str]]:
    state = supervisor.exporter.state
    if supervisor.exporter.trouble:
        yield "export", f"export: {supervisor.exporter.trouble}"
    if supervisor.central.status.away:
        yield "central", f"central: {supervisor.central.status.away}"
    if supervisor.central.status.trouble:
        yield "replica", f"replica: {supervisor.central.status.trouble}"
    for text in supervisor.rollover.faults():
        yield "init_outputs", text
    spool = supervisor.spool_watch.fault()
    if spool is not None:
        yield "spool", spool
    if state.deferred:
        yield "export", f"export: {state.deferred} hand-overs fail and are tried again"
    if state.letters:
        yield "dead_letters", f"{state.letters} dead letters: see ppdctl dead-letters list"
    if not supervisor.nursery.ready:
        yield "nursery", f"nursery: {supervisor.nursery.trouble or 'it is starting'}"
    if supervisor.journal.trouble:
        yield "journal", f"journal: {supervisor.journal.trouble}"
    for source in supervisor.sources.status():
        if source.trouble:
            yield "raws", f"raws from {source.name}: {source.trouble}"
    for listening in supervisor.visit_sources.status():
        if listening.trouble:
            yield "visits", f"visits from {listening.name}: {listening.trouble}"
    page = supervisor.web.fault()
    if page is not None:
        yield "web", page
    blocked = sum(d.phase == "spool_full" for d in supervisor.lifecycle.table.live())
    if blocked:
        yield "spool", f"{blocked} children wait for room in the spool {supervisor.settings.spool_dir}"
