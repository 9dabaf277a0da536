"""What on this machine can keep ppd from working, and how to mend it."""

from __future__ import annotations

__all__ = ["LOCAL_CHECKS", "SETTINGS_CHECKS"]

import ctypes
import importlib.metadata
import itertools
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from .._pipeline_checks import build_graphs
from ..cache.place import place_fault
from ..config import Settings
from ..errors import ConfigurationError
from ..landlock import abi
from ..sources.mounts import is_remote, mounts_around, read_mounts
from .doctor import Finding

_OLDEST_PYTHON = (3, 12)
_FEW_FILES = 4096
_MANY_FOLDERS = 200_000
_TIME_ERROR = 5
_INOTIFY = Path("/proc/sys/fs/inotify")


def check_python() -> Iterator[Finding]:
    """Whether this Python will do."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        yield Finding("fault", f"Python {version}", f"install Python {oldest} or newer and ppd in it")
    else:
        yield Finding("ok", f"Python {version}, {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """Whether all that ppd needs is installed, in versions that it can use."""
    wrong = []
    requirements = [Requirement(text) for text in importlib.metadata.requires("ppd") or ()]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    if wrong:
        yield Finding("fault", "; ".join(wrong), "pip install -r requirements.txt, as it comes with ppd")
    else:
        middleware = importlib.metadata.version("lsst-daf-butler")
        yield Finding("ok", f"{len(needed)} packages, lsst-daf-butler {middleware}")


def check_clock() -> Iterator[Finding]:
    """Whether somebody keeps the clock: messages expire by it, and days begin by it."""
    try:
        # Asks only: what is to be changed (modes, the first word) is nothing.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        state = -1
    if state == _TIME_ERROR:
        yield Finding(
            "warning",
            "the kernel says that nobody keeps its clock (in a container the host may do so all the same)",
            "run chronyd or systemd-timesyncd; timedatectl tells whether it works",
        )
    elif state < 0:
        yield Finding("warning", "whether the clock is right can't be found out here")
    else:
        yield Finding("ok", "the clock is kept")


def check_limits() -> Iterator[Finding]:
    """Whether this user may have as many open files as a supervisor with many children needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        yield Finding("fault", f"no more than {hard} open files", "raise LimitNOFILE= or ulimit -Hn to 65536")
    else:
        yield Finding("ok", f"open files: {hard}")


def check_landlock(settings: Settings) -> Iterator[Finding]:
    """Whether tasks can be kept from files that are not theirs."""
    if settings.landlock == "off":
        yield Finding("ok", "landlock is off: tasks can open what ppd's user can")
    elif abi():
        yield Finding("ok", "tasks can't open configuration, credentials and journal")
    else:
        yield Finding(
            "fault" if settings.landlock == "require" else "warning",
            "no Landlock in this kernel, or it is off: tasks can open configuration and credentials",
            "boot Linux 5.19 or newer with lsm=landlock,…, and allow its system calls in a container",
        )


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Whether what must be kept can be."""
    good = []
    for name in ("state_dir", "local_repos", "spool_dir", "socket_dir"):
        folder: Path = getattr(settings, name)
        fault = _unwritable(folder)
        if fault is not None:
            yield Finding("fault", f"{name} {fault}", f"make it and give it to this user, or set {name}")
        else:
            good.append(name)
    if "spool_dir" in good:
        free = shutil.disk_usage(_existing(settings.spool_dir)).free
        if free < settings.spool_min_free:
            yield Finding(
                "fault",
                f"spool_dir {settings.spool_dir} has {free / 2**20:.0f} MiB free: no visit is accepted with "
                f"less than {settings.spool_min_free / 2**20:.0f}",
                "make room, or set spool_dir to another disk",
            )
        if "local_repos" in good and _device(settings.spool_dir) != _device(settings.local_repos):
            yield Finding(
                "warning",
                f"spool_dir {settings.spool_dir} and local_repos {settings.local_repos} are on different "
                "file systems: outputs are copied",
                "set both to the same one: then they are linked",
            )
    if len(good) == 4:
        yield Finding("ok", f"folders in {settings.state_dir} can be written")


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Whether there is memory for the cache, and for the children."""
    fault = place_fault(settings.shm_dir, settings.shm_min_free, create=False)
    if fault is not None and settings.shm_fallback is None:
        yield Finding(
            "fault",
            f"shared memory: {fault}",
            "mount it larger (--shm-size in a container), or set shm_fallback to a folder",
        )
    elif fault is not None:
        yield Finding(
            "warning", f"shared memory: {fault}; the cache goes to {settings.shm_fallback}", "mount it larger"
        )
    else:
        free = shutil.disk_usage(settings.shm_dir).free
        if free < settings.cache_bytes:
            yield Finding(
                "warning",
                f"{settings.shm_dir} has {free / 2**30:.1f} GiB free, cache_bytes is "
                f"{settings.cache_bytes / 2**30:.1f} GiB",
                "mount it larger, or set cache_bytes to what there is",
            )
        else:
            yield Finding("ok", f"{settings.shm_dir} has {free / 2**30:.1f} GiB free")
    if settings.child_memory is not None:
        most, there = settings.slots * settings.child_memory, psutil.virtual_memory().total
        if most > there:
            yield Finding(
                "warning",
                f"{settings.slots} slots with child_memory {settings.child_memory / 2**30:.1f} GiB each may "
                f"want {most / 2**30:.0f} GiB, there are {there / 2**30:.0f}",
                "lower slots or child_memory, or see that running is small enough",
            )


def check_raws(settings: Settings) -> Iterator[Finding]:
    """Whether raws can be seen when they come."""
    folders = 0
    for path in settings.raw_dirs:
        if not path.is_dir():
            # ppd waits for it; but at night there is no time to find a typing error.
            yield Finding(
                "warning", f"raw_dirs: {path} is no folder", "make or mount it, or correct raw_dirs"
            )
        elif not os.access(path, os.R_OK | os.X_OK):
            yield Finding("fault", f"raw_dirs: {path} can't be read", "give this user the right to read it")
        else:
            yield from _observed(settings, path)
            folders += _folders(path)
    if not settings.raw_dirs and settings.raw_bucket is None:
        yield Finding("fault", "no source of raws is configured", "set raw_dirs or raw_bucket")
    limit = _inotify_limit("max_user_watches")
    if limit is not None and settings.raw_observer != "polling" and folders > 0.8 * limit:
        yield Finding(
            "fault" if folders > limit else "warning",
            f"{folders} folders are to be watched, and a user may watch {limit}",
            "sysctl fs.inotify.max_user_watches, or raw_observer: polling",
        )
    elif settings.raw_dirs:
        yield Finding("ok", f"{folders} folders to watch" + (f", {limit} are allowed" if limit else ""))


def check_pipelines(settings: Settings) -> Iterator[Finding]:
    """Whether the configured pipelines can be read, and their tasks imported."""
    try:
        graphs = build_graphs(settings)
    except ConfigurationError as e:
        for line in str(e).splitlines():
            yield Finding("fault", line, "correct the file, or install the package that it names")
    else:
        yield Finding("ok", f"{len(graphs)} pipelines")


LOCAL_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": check_python,
    "packages": check_packages,
    "clock": check_clock,
    "limits": check_limits,
}
"""Checks that need no configuration."""

SETTINGS_CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "folders": check_folders,
    "landlock": check_landlock,
    "memory": check_memory,
    "raws": check_raws,
    "pipelines": check_pipelines,
}
"""Checks of what the configuration says of this machine."""


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _unwritable(folder: Path) -> str | None:
    """Say why nothing can be written to a folder, which may still have to be made."""
    there = _existing(folder)
    try:
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as e:
        return f"{there} can't be written to: {e.strerror}"


def _observed(settings: Settings, path: Path) -> Iterator[Finding]:
    kinds = [mount.type for mount in mounts_around(str(path.resolve()), read_mounts())]
    remote = [kind for kind in kinds[:1] if is_remote(kind)]
    if remote and settings.raw_observer == "inotify":
        yield Finding(
            "warning",
            f"raw_dirs: {path} is on {remote[0]}, where inotify does not see what other hosts write",
            "set raw_observer to auto or polling",
        )


def _folders(path: Path) -> int:
    """Count a folder and those below it, up to a number that is too many in any case."""
    return sum(1 for _ in itertools.islice(os.walk(path), _MANY_FOLDERS))


def _inotify_limit(name: str) -> int | None:
    try:
        return int((_INOTIFY / name).read_text())
    except (OSError, ValueError):
        return None
