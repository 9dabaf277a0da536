"""Telling systemd how the service is (sd_notify)."""

from __future__ import annotations

__all__ = ["sd_notify"]

import contextlib
import os
import socket


def sd_notify(text: str) -> None:
    """Send a state to systemd, if it is there.

    Parameters
    ----------
    text : `str`
        For example ``READY=1``; see ``sd_notify(3)``.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(address)
        notify.sendall(text.encode())
