"""What stands in the docs to be typed, and a shell that types it."""

from __future__ import annotations

import dataclasses
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Where a block has no language, it is taken for commands: drawings have to say ``text``.
SHELLS = ("", "sh", "bash", "console")

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What it has for a shell, without comments; lines that go on are one."""
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in joined.splitlines()]
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [re.sub(r" {2,}", " ", line) for line in lines if line]


def blocks(path: Path) -> Iterator[Block]:
    """Find the fenced blocks of a page."""
    text = path.read_text()
    for match in _BLOCK.finditer(text):
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        yield Block(str(path.relative_to(ROOT)), line, match["language"].strip(), body)


def spans(path: Path, *programs: str) -> Iterator[str]:
    """Find what the text of a page has of a program's commands, between blocks."""
    text = _BLOCK.sub("", path.read_text())
    for span in re.findall(r"`([^`]+)`", text):
        words = " ".join(span.split())
        if words.partition(" ")[0].removeprefix("bin/") in programs:
            yield words


def words_of(command: str) -> list[str]:
    """Split a command into words, up to where its output goes."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>":
            break
        found.append(word)
    # ``2>``: the number belongs to what is left out.
    return found[:-1] if found and found[-1] == "2" and "2>" in command else found


class Shell:
    """A bash that is told one command after the other, as a person would.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where it is.
    environ : `dict` [ `str`, `str` ]
        Its environment.
    """

    def __init__(self, folder: Path, environ: dict[str, str]):
        self.transcript = folder / "transcript.txt"
        self._codes, theirs = os.pipe()
        with self.transcript.open("wb") as stream:
            self._bash = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environ,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        self._theirs = theirs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and what it has left in the background."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._bash.pid, signum)
            except ProcessLookupError:
                break
            time.sleep(2.0 if signum == signal.SIGTERM else 0.0)
        self._bash.wait(10.0)
        assert self._bash.stdin is not None
        self._bash.stdin.close()
        os.close(self._codes)
        os.close(self._theirs)

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        """Type a command.

        Parameters
        ----------
        command : `str`
            One line.
        timeout : `float`
            Seconds that it may take.

        Returns
        -------
        code : `int`
            Exit code.
        output : `str`
            What it has printed, and what those in the background have meanwhile.

        Raises
        ------
        TimeoutError
            Raised if it takes longer.
        """
        assert self._bash.stdin is not None
        begin = self.transcript.stat().st_size
        # What it reads must not be the next command.
        line = f"{{ {command}\n}} < /dev/null\necho $? >&{self._theirs}\n"
        self._bash.stdin.write(f"printf '%s\\n' {shlex.quote('$ ' + command)}\n{line}".encode())
        self._bash.stdin.flush()
        if not select.select([self._codes], [], [], timeout)[0]:
            raise TimeoutError(f"{command!r} takes longer than {timeout:g} s; {self.transcript}")
        code = int(os.read(self._codes, 16))
        return code, self.transcript.read_bytes()[begin:].decode()
