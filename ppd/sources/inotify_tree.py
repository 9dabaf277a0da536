"""Changes in a tree of folders as the kernel tells them, by inotify."""

from __future__ import annotations

__all__ = ["InotifyTree"]

import errno
import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from .folders import SymlinkedFolders, list_folder
from .observers import Fault, Notice

_LOG = logging.getLogger(__name__)

# No more than what is of use: a walk through a large tree opens every folder
# in it, and if that were told the kernel's queue would overflow.
_MASK = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
)
_COME = InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO
_LIMITS = {
    errno.ENOSPC: "the limit of inotify watches is reached (fs.inotify.max_user_watches)",
    errno.EMFILE: "the limit of inotify instances is reached (fs.inotify.max_user_instances)",
    errno.ENOMEM: "the kernel has no memory for inotify watches",
}


class InotifyTree:
    """Watches every folder of a tree.

    watchdog's observers keep to themselves what can't be watched and what the
    kernel has dropped; so only its lower half is used, the inotify thread.

    Parameters
    ----------
    root : `str`
        The tree.
    notice : `ppd.sources.observers.Notice`
        Who is told.
    links : `ppd.sources.folders.SymlinkedFolders`
        Which symbolic links are followed.
    """

    def __init__(self, root: str, notice: Notice, links: SymlinkedFolders):
        self._root = root
        self._notice = notice
        self._links = links
        self._id = CallbackId(id(self))
        self._lock = threading.Lock()
        self._paths: dict[WatchDescriptor, str] = {}
        self._watches: dict[str, WatchDescriptor] = {}
        self._inotify: InotifyFD | None = None
        self._closed = False
        self._fault: Fault | None = None

    def start(self) -> None:
        """Watch all folders and tell of the files in them."""
        # Two threads may meet a new folder at once, which is no mistake.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        try:
            self._inotify = InotifyFD()
        except OSError as e:
            self._fault = Fault(_LIMITS.get(e.errno or 0, f"inotify can't be had: {e}"), unable=True)
            return
        self._inotify.start()
        self._adopt(self._root, first=True)
        if self._root not in self._watches and self._fault is None:
            raise PermissionError(errno.EACCES, "it can't be read", self._root)

    def turn(self) -> None:
        """Do nothing: the kernel tells."""

    def visit(self, folder: str) -> None:
        """Watch a folder that is not watched yet."""
        if folder not in self._watches:
            self._guarded(lambda: self._adopt(folder, first=False), folder)

    @property
    def fault(self) -> Fault | None:
        """What ends this observer, if anything has."""
        if self._fault is None and self._inotify is not None and not self._inotify.is_alive():
            return Fault("the thread that reads what the kernel tells has ended", unable=False)
        return self._fault

    def close(self) -> None:
        """End the thread and all watches."""
        self._closed = True
        if self._inotify is not None:
            self._inotify.stop()
            self._inotify.join(5.0)

    # What the inotify thread calls

    def on_event(self, event: InotifyEvent) -> None:
        """Take what the kernel tells of one name in one folder."""
        folder = self._paths.get(event.wd)
        if folder is None or self._closed:
            return
        path = f"{folder}/{os.fsdecode(event.name)}" if event.name else folder
        self._guarded(lambda: self._take(event, path), path)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Forget a folder that is gone."""
        with self._lock:
            folder = self._paths.pop(wd, None)
            if folder is not None and self._watches.get(folder) == wd:
                del self._watches[folder]
        if folder == self._root:
            self._end("it was removed or unmounted", unable=False)

    def on_queue_overflow(self) -> None:
        """Begin anew: what was dropped may be a folder's move, or a new folder."""
        self._end("the kernel dropped events, its queue was full", unable=False)

    # Steps

    def _end(self, reason: str, *, unable: bool) -> None:
        if self._fault is None and not self._closed:
            self._fault = Fault(reason, unable)

    def _guarded(self, step: Callable[[], None], path: str) -> None:
        """Do a step so that what goes wrong with one file ends nothing."""
        try:
            step()
        except OSError as e:
            if e.errno in _LIMITS and e.filename is None:
                self._end(_LIMITS[e.errno], unable=True)
            else:
                _LOG.exception("%a can't be looked at.", path)
        except Exception:
            _LOG.exception("%a can't be looked at.", path)

    def _take(self, event: InotifyEvent, path: str) -> None:
        mask = event.mask
        if event.is_move_self:
            if path == self._root:
                self._end("it was moved", unable=False)
        elif mask & InotifyConstants.IN_ISDIR:
            if event.is_moved_from:
                self._abandon(path)
            elif mask & _COME:
                self._adopt(path, first=False)
        elif mask & _COME and Path(path).is_symlink() and self._links.follows(path):
            self._adopt(path, first=False)
        elif event.is_create:
            self._notice.found(path, False)
        elif event.is_close_write or event.is_moved_to:
            self._notice.closed(path)

    def _adopt(self, folder: str, first: bool) -> None:
        """Watch a folder and all below it, and tell of the files: new folders fill before that."""
        waiting = [folder]
        while waiting and self._fault is None and not self._closed:
            here = waiting.pop()
            try:
                self._watch(here)
                listing = list_folder(here, self._links)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone again
            except PermissionError as e:
                if here != self._root:
                    _LOG.warning("What lies in %a is not seen: %s.", here, e.strerror)
                continue
            except OSError as e:
                if e.errno not in _LIMITS or e.filename is not None:
                    raise
                self._end(_LIMITS[e.errno], unable=True)
                return
            self._notice.beat()
            assert listing is not None
            told = () if first and self._notice.too_old(listing.changed) else listing.files
            for name in told:
                self._notice.found(f"{here}/{name}", first)
            waiting += [f"{here}/{name}" for name in listing.folders]

    def _watch(self, folder: str) -> None:
        if folder in self._watches:
            return
        assert self._inotify is not None
        wd = self._inotify.add_callback(os.fsencode(folder), _MASK, self, self._id)
        if wd == -1:  # watchdog keeps this one error to itself
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        with self._lock:
            self._paths[wd] = folder
            self._watches[folder] = wd

    def _abandon(self, folder: str) -> None:
        """End the watches of a folder that was moved: their paths are wrong now."""
        below = folder + "/"
        with self._lock:
            gone = [
                (path, wd) for path, wd in self._watches.items() if path == folder or path.startswith(below)
            ]
            for path, wd in gone:
                del self._watches[path]
                self._paths.pop(wd, None)
        assert self._inotify is not None
        self._inotify.remove_callbacks([(wd, self._id) for _, wd in gone])
