"""Named places where a process can be made to die, to see what the others make of it.

Between a message that has arrived and its outputs in the central repo there
are many moments; ppd promises something for each of them.
A place says `here`, which does nothing: which of two functions that name means
is decided once, when this module is imported.  Where `FOLDER_VARIABLE` names a
folder, a process that comes to a place looks for a file of that name there.
Whoever moves it away dies of SIGKILL, as by the kernel's hand: one file is one
death, and the next start lives.  An empty file is for whoever comes first; else
it has the words of what the place says of itself, and of what the process is about.
"""

from __future__ import annotations

__all__ = ["CRASH_POINTS", "FOLDER_VARIABLE", "HIT_FOLDER", "CrashPoint", "about", "here"]

import dataclasses
import os
import signal
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

FOLDER_VARIABLE = "PPD_CRASH_DIR"
"""Environment variable with the folder, an absolute path; not set: nothing is looked for."""

HIT_FOLDER = "hit"
"""Folder within that one where the file goes, as ``NAME-PID``, before the process dies."""

Process = Literal["supervisor", "nursery", "child", "exporter"]


@dataclasses.dataclass(frozen=True)
class CrashPoint:
    """A place that has a name."""

    process: Process
    """Who dies."""
    moment: str
    """What has happened, and what has not."""


_SUPERVISOR = {
    # Announced
    "entries-read": "entries of a stream are read; the loop does not know of them",
    "visit-received": "an announcement is read; nothing of it is written",
    "visit-validated": "it can be taken on; nothing of it is written",
    "acceptance-not-journaled": "its transaction has not begun",
    "acceptance-in-transaction": "its rows are in a transaction that is not committed",
    "acceptance-journaled": "it is durable; nobody knows of it but the journal",
    "answer-not-sent": "what was asked for is durable; who asked does not know",
    "answer-sent": "an answer is on its way",
    "entries-not-confirmed": "what a stream's entries announce is accounted for; the stream does not know",
    "entries-confirmed": "the stream knows that its entries are accounted for",
    "notes-not-committed": "what a turn of the loop has noted is in memory",
    "notes-committed": "what a turn of the loop has noted is durable",
    # Inputs
    "inputs-asked": "the reader of the central repo is asked for a visit's inputs",
    "inputs-found": "it is known what they are; none is fetched",
    "transfer-not-checked": "files are in the cache; nobody has compared them with their records",
    "inputs-fetched": "they are in the cache; no detector has a lease on them",
    "inputs-leased": "each detector has its lease; the loop does not know",
    "inputs-heard": "the loop has the answer; no detector-visit has changed its state",
    "inputs-noted": "detector-visits wait for a slot",
    # Children
    "fork-not-asked": "a slot is free and a job is written",
    "fork-asked": "the nursery is asked for a child",
    "fork-noted": "its process is known",
    "child-ready-noted": "the child has its repo; no raw was sent to it",
    "raw-seen": "a raw was found; its child does not know",
    "raw-not-sent": "a raw is about to be sent",
    "raw-sent": "a raw is sent to its child",
    "permit-asked": "a child stands in line for a processor",
    "permit-granted": "a child may use a processor",
    "phase-noted": "what a child has begun or ended is noted",
    "last-word-heard": "a child has said how it ended",
    "child-end-heard": "a child is reaped",
    # Ends
    "ending-not-decided": "a child is gone with all that it left; what follows is not decided",
    "remains-removed": "its repo is removed; what follows is not noted",
    "ending-decided": "what follows is noted",
    "retry-noted": "another attempt is to follow",
    "look-back-noted": "what a killed attempt has left is to be looked into",
    "export-heard": "central has outputs; nothing is noted",
    "export-noted": "central has outputs; that is noted and not durable",
    "discard-not-sent": "central has outputs, and that is durable; the exporter may not let go of them",
    "discard-sent": "the exporter is told that it may",
    "dead-letter-noted": "outputs were set aside; that is noted and not durable",
    # Start
    "recovery-not-begun": "journal and spool of an earlier life are there; nothing is taken up",
    "recovery-visit-taken": "one of the unfinished visits is taken up again",
    "recovery-committed": "all is taken up, and that is durable; old repos are still there",
    "recovery-done": "old repos are removed but for those to be looked into; no source of raws has started",
    "ready": "it is about to serve",
    "nursery-ready": "the first nursery is ready; no inputs can be sought yet",
}
_NURSERY = {
    "inputs-held": "it has read inputs for its children; nobody knows",
    "fork-request-read": "a job is read; no child is forked",
    "forked": "a child is forked; nobody knows of it",
    "fork-said": "a child is forked, and that is said",
    "child-reaped": "a child is reaped; nobody knows",
    "exit-said": "a child's end is said",
}
_CHILD = {
    "settled": "it is a process of its own, with a line to the supervisor",
    "looked-back": "the APDB has nothing of the attempt that was looked into; its repo is still there",
    "repo-cloned": "its repo is open",
    "preload-put": "the products of preload are in it",
    "ready-said": "that is said",
    "preprocess-begun": "it has a processor for pre-processing",
    "preprocess-ended": "pre-processing has its outputs",
    "raw-received": "it is told of a raw",
    "raw-fetched": "the raw is in its folder",
    "raw-ingested": "the raw is in its repo",
    "visits-defined": "its visits are in its repo",
    "apdb-asked": "the APDB does not have them",
    "main-begun": "it has a processor for the main pipeline, and that is said",
    "graph-built": "it is known which quanta are to be run",
    "first-task": "the first task is about to run",
    "pipeline-ended": "all tasks have run, the APDB has it; nothing is handed over",
    "outputs-found": "it is known what is to be handed over",
    "building-made": "there is an empty folder in the spool",
    "file-linked": "some outputs are in it",
    "records-collected": "all outputs are in it; it has no manifest",
    "manifest-sum-written": "the checksum of its manifest is in it; the manifest is not",
    "manifest-written": "it has a manifest; its name is not on disk for sure",
    "hand-over-built": "all is on disk; the rename has not been done",
    "handed-over": "the rename has been done",
    "source-removed": "some outputs are gone from its repo",
    "hand-over-said": "the supervisor is told of it",
    "last-word-not-said": "all is done but to say so",
    "last-word-said": "its last word is on its way; its repo is still there",
    "repo-removed": "its repo is gone",
}
_EXPORTER = {
    "spool-locked": "the spool is its own; nothing is looked at",
    "batch-chosen": "it is known what is to be exported; nothing is read",
    "manifest-read": "a manifest is read; its files are not",
    "files-verified": "a hand-over is what its child wrote",
    "collections-registered": "central knows the dataset types and runs of a batch",
    "records-in-transaction": "dimension records are in a transaction that is not committed",
    "records-inserted": "central has a batch's dimension records",
    "not-ingested": "its data IDs are expanded; central has no file and no dataset of it",
    "ingested": "central has files and datasets; the file system may hold them in memory",
    "batch-refused": "central did not take a batch; its halves are not tried",
    "report-not-sent": "central has them for good; nobody knows",
    "report-sent": "the supervisor is told; hand-overs are still there",
    "discard-read": "the exporter may let hand-overs go; they are still there",
    "hand-over-not-removed": "one is about to go",
    "hand-over-removed": "it is no hand-over any more; its files are still there",
    "dead-letter-not-moved": "a hand-over can't be exported, and has the reason in it; it is still one",
    "dead-letter-moved": "it was set aside; nobody knows",
}


def _named(process: Process, moments: Mapping[str, str]) -> dict[str, CrashPoint]:
    return {f"{process}.{name}": CrashPoint(process, moment) for name, moment in moments.items()}


CRASH_POINTS: Mapping[str, CrashPoint] = types.MappingProxyType(
    _named("supervisor", _SUPERVISOR)
    | _named("nursery", _NURSERY)
    | _named("child", _CHILD)
    | _named("exporter", _EXPORTER)
)
"""All of them, by name.  Each is in the code once, as ``here("NAME")``."""

_folder = os.environ.get(FOLDER_VARIABLE)
_subject = ""


def _pass(name: str, what: str = "") -> None:
    """Do nothing."""


def _die_if_told(name: str, what: str = "") -> None:
    """Die if there is a file for it."""
    assert _folder is not None
    path = Path(_folder) / name
    try:
        if not set(path.read_text().split()) <= {what, _subject}:
            return
        path.rename(path.parent / HIT_FOLDER / f"{name}-{os.getpid()}")
    except OSError:
        return  # it is not there, or another process was first
    os.kill(os.getpid(), signal.SIGKILL)


here: Callable[..., None] = _die_if_told if _folder else _pass
"""Say where one is: ``here(name)``, or ``here(name, what)`` where the same place serves several things."""


def about(subject: str) -> None:
    """Say what this process is for, where it has one subject; a file may name it.

    Parameters
    ----------
    subject : `str`
        Such as ``GROUP/DETECTOR`` of a child.
    """
    global _subject
    _subject = subject
