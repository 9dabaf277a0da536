"""Keys with which other machines are let in: ours, and one for each that may come.

A folder has ``server.key_secret``, and the public keys of who may come in ``look``
and ``change``, a file each. To let nobody in by a key any more, remove its file.
CURVE: https://rfc.zeromq.org/spec/26/.
"""

from __future__ import annotations

__all__ = ["ROLES", "SERVER", "Keys", "load_client", "make_client", "make_server"]

import os
import time
from pathlib import Path

from .errors import PpdError

ROLES = ("look", "change")
"""Folders of public keys, by what their owners may do."""
SERVER = "server"
_SECONDS = 1.0
_MAX_KEYS = 1000
_MAX_BYTES = 4096


class Keys:
    """The public keys of who may come, as the folder has them now.

    Parameters
    ----------
    folder : `pathlib.Path`
        The folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._read_at = -_SECONDS
        self._found: dict[bytes, tuple[str, str]] = {}
        self.trouble: str | None = None
        """Why some can't be read."""

    def find(self, key: bytes) -> tuple[str, str] | None:
        """Return the role and the name of a public key; `None`: it is of nobody who may come.

        Parameters
        ----------
        key : `bytes`
            The key in Z85.
        """
        now = time.monotonic()
        if now >= self._read_at + _SECONDS:
            self._read_at, self.trouble = now, None
            self._found = self._read()
        return self._found.get(key)

    def _read(self) -> dict[bytes, tuple[str, str]]:
        found: dict[bytes, tuple[str, str]] = {}
        # Who is in both may change.
        for role in ROLES:
            try:
                files = sorted((self._folder / role).glob("*.key"))[:_MAX_KEYS]
            except OSError as e:
                self.trouble = f"{self._folder / role} can't be read: {e.strerror}"
                continue
            for file in files:
                try:
                    found[_load(file)[0]] = role, file.stem
                except (OSError, ValueError) as e:
                    self.trouble = f"{file} has no public key: {e}"
        return found

    def own(self) -> tuple[bytes, bytes]:
        """Return our own public and secret key.

        Raises
        ------
        ppd.errors.PpdError
            Raised if there is none.
        """
        file = self._folder / f"{SERVER}.key_secret"
        try:
            public, secret = _load(file)
        except (OSError, ValueError) as e:
            raise PpdError(f"{file} has no key: {e}; ppdctl keys server makes one.") from e
        if secret is None:
            raise PpdError(f"{file} has no secret key; ppdctl keys server makes one.")
        return public, secret


def make_server(folder: Path) -> Path:
    """Make our own key, and the folders of others'.

    Returns
    -------
    public : `pathlib.Path`
        File with the public key: who wants to come must have it.

    Raises
    ------
    ppd.errors.PpdError
        Raised if there is one already, or it can't be written.
    """
    return _make(folder, SERVER, folder)


def make_client(folder: Path, name: str, role: str, handed_over: Path) -> Path:
    """Make a key for somebody who may come.

    Parameters
    ----------
    folder : `pathlib.Path`
        The folder of keys; the public one is left in it.
    name : `str`
        Whose it is; the log has it.
    role : `str`
        What he may do, one of `ROLES`.
    handed_over : `pathlib.Path`
        Folder that he gets: with his secret key and the server's public one.

    Returns
    -------
    secret : `pathlib.Path`
        The file with his secret key.

    Raises
    ------
    ppd.errors.PpdError
        Raised if there is one of that name already, or it can't be written.
    """
    if not name or name != Path(name).name or not name.replace("-", "").replace("_", "").isalnum():
        raise PpdError(f"{name!r}: a name has letters, digits, - and _.")
    server = folder / f"{SERVER}.key"
    if not server.is_file():
        raise PpdError(f"There is no {server}: ppdctl keys server makes it.")
    if any((folder / one / f"{name}.key").exists() for one in ROLES):
        raise PpdError(f"There is a key {name!r} in {folder} already; remove it first.")
    public = _make(handed_over, name, folder / role)
    try:
        (handed_over / server.name).write_bytes(server.read_bytes())
    except OSError as e:
        public.unlink()
        raise PpdError(f"{handed_over / server.name} can't be written: {e.strerror}.") from e
    return handed_over / f"{name}.key_secret"


def load_client(file: Path) -> tuple[bytes, bytes, bytes]:
    """Read what is needed to come by a key.

    Parameters
    ----------
    file : `pathlib.Path`
        File with the secret key; ``server.key`` is beside it.

    Returns
    -------
    public, secret, server : `bytes`
        Own keys, and the public one of the server, in Z85.

    Raises
    ------
    ppd.errors.PpdError
        Raised if a file can't be read, or others than its owner can read the secret.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise PpdError(f"{file} is a secret that others can read: chmod 600 {file}.")
        public, secret = _load(file)
        server, _ = _load(file.with_name(f"{SERVER}.key"))
    except (OSError, ValueError) as e:
        raise PpdError(f"The key can't be used: {e}.") from e
    if secret is None:
        raise PpdError(f"{file} has a public key only; its .key_secret is wanted.")
    return public, secret, server


def _make(folder: Path, name: str, public_folder: Path) -> Path:
    import zmq.auth

    secret = folder / f"{name}.key_secret"
    if secret.exists():
        raise PpdError(f"{secret} is there already.")
    mask = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name == SERVER:
            for role in ROLES:
                (folder / role).mkdir(exist_ok=True)
        made, _ = zmq.auth.create_certificates(folder, name)
        return Path(made).rename(public_folder / f"{name}.key")
    except OSError as e:
        raise PpdError(f"No key can be made in {folder}: {e}.") from e
    finally:
        os.umask(mask)


def _load(file: Path) -> tuple[bytes, bytes | None]:
    """Read a key file, not one of a size that none has."""
    import zmq.auth

    if file.stat().st_size > _MAX_BYTES:
        raise ValueError("it is too large")
    public, secret = zmq.auth.load_certificate(file)
    return bytes(public), None if secret is None else bytes(secret)
