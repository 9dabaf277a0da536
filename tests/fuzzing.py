"""Mutations: of bytes, of JSON, and of FITS headers; the same seed gives the same ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

_CARD, _BLOCK = 80, 2880

_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
    1e308,
    -1e-320,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
)
_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\0",
    "\n",
    "'",
    '"; DROP TABLE visit; --',
    "../../etc/passwd",
    "%s%n{0}$HOME",
    "NaN",
    "٣²",
    "\u2028\ufeff",
    "\ud800",
    "\U0001f52d",
    "x" * 300,
    "x" * 100_000,
    "[" * 2_000,
    "9" * 5_000,
)


def _deep(rng: random.Random) -> Any:
    value: Any = rng.choice([None, 1, "x"])
    for _ in range(rng.choice([10, 150, 300])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


class Mutator:
    """Makes broken messages of good ones.

    Parameters
    ----------
    seed : `int`
        Of the random numbers.
    others : sequence of `bytes`, optional
        Messages that parts are taken of.
    """

    def __init__(self, seed: int, others: Sequence[bytes] = ()):
        self.rng = random.Random(seed)
        self._others = tuple(others)
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self.flip,
            self.cut,
            self.insert,
            self.double,
            self.splice,
            self.change_json,
            self.change_json,
            self.change_json,
        )

    def mutate(self, data: bytes, times: int | None = None) -> bytes:
        """Apply one to three mutations."""
        for _ in range(times or self.rng.choice([1, 1, 1, 2, 3])):
            data = self.rng.choice(self._ways)(data)
        return data

    # Of bytes

    def flip(self, data: bytes) -> bytes:
        """Flip some bits."""
        changed = bytearray(data)
        for _ in range(self.rng.choice([1, 1, 2, 8, 64])):
            if changed:
                changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        """Cut the end off, or a piece out."""
        begin, end = sorted(self.rng.randrange(len(data) + 1) for _ in range(2))
        return data[:begin] if self.rng.random() < 0.5 else data[:begin] + data[end:]

    def insert(self, data: bytes) -> bytes:
        """Put bytes in that were not there."""
        at = self.rng.randrange(len(data) + 1)
        new = self.rng.choice(
            [
                self.rng.randbytes(self.rng.choice([1, 4, 100])),
                b"\0",
                b"\n",
                b"\xff\xfe",
                b"{",
                b"]",
                b'"',
                b"\\ud800",
                b"NaN",
                b"1e999",
                b"," * 1000,
                b"[" * 3000,
            ]
        )
        return data[:at] + new + data[at:]

    def double(self, data: bytes) -> bytes:
        """Repeat a piece, or all."""
        begin, end = sorted(self.rng.randrange(len(data) + 1) for _ in range(2))
        return data + data if self.rng.random() < 0.3 else data[:end] + data[begin:end] + data[end:]

    def splice(self, data: bytes) -> bytes:
        """Go on as another message does."""
        other = self.rng.choice(self._others or (data,))
        return data[: self.rng.randrange(len(data) + 1)] + other[self.rng.randrange(len(other) + 1) :]

    # Of JSON

    def change_json(self, data: bytes) -> bytes:
        """Change a value somewhere within; bytes that are not JSON are flipped."""
        try:
            value = json.loads(data)
            # A nesting that another mutation made may be deeper than Python goes.
            value = self._change(value)
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            return self.flip(data)

    def value(self) -> Any:
        """Make a value that nobody expects."""
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            return rng.choice([None, True, False, [], {}, [[]], {"": None}])
        if kind == 1:
            return rng.choice(_NUMBERS)
        if kind == 2:
            return rng.choice(_TEXTS)
        if kind == 3:
            return _deep(rng)
        if kind == 4:
            return [rng.choice(_NUMBERS) for _ in range(rng.choice([1, 2, 3, 1000]))]
        return {rng.choice(_TEXTS)[:50]: rng.choice(_NUMBERS) for _ in range(3)}

    def _change(self, value: Any) -> Any:
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            way = rng.random()
            if way < 0.1:
                return {k: v for k, v in value.items() if k != key}
            if way < 0.2:
                return {**value, rng.choice(_TEXTS)[:50]: self.value()}
            if way < 0.3:
                return {k: value[rng.choice(list(value))] if k == key else v for k, v in value.items()}
            return {**value, key: self._change(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            index = rng.randrange(len(value))
            return [*value[:index], self._change(value[index]), *value[index + 1 :]]
        if isinstance(value, str) and rng.random() < 0.3:
            # JSON within JSON, numbers as text.
            return rng.choice([value + value, value[:-1], json.dumps(value), value.upper(), value + "\n"])
        if isinstance(value, int | float) and rng.random() < 0.3:
            # An integer may be too large to become a float.
            other = value + 0.5 if abs(value) < 1e300 else value // 2
            return rng.choice([str(value), -value, other, [value], value * 10])
        return self.value()


# Of FITS headers


class HeaderMutator:
    """Makes raws whose headers lie of a good one.

    Parameters
    ----------
    seed : `int`
        Of the random numbers.
    raw : `bytes`
        A FITS file.
    """

    def __init__(self, seed: int, raw: bytes):
        self.rng = random.Random(seed)
        cards = [raw[i : i + _CARD] for i in range(0, len(raw), _CARD)]
        end = next(i for i, card in enumerate(cards) if card.startswith(b"END" + b" " * 77))
        self._cards = cards[:end]
        self._data = raw[-(-(end + 1) * _CARD // _BLOCK) * _BLOCK :]

    def mutate(self) -> tuple[str, bytes]:
        """Make a raw; return what was done to it, and its bytes."""
        cards, end, data, said = list(self._cards), b"END", self._data, []
        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            ways = (self._value, self._value, self._value, self._lie, self._lie, self._card, self._bytes)
            said.append(self.rng.choice(ways)(cards))
        if self.rng.random() < 0.1:
            end = self.rng.choice(
                [b"", b"END=", b" END", b"end", b"END     x", b"\0\0\0", b"END" + b" " * 77 + b"x"]
            )
            said.append(f"END is {end!r}")
        if self.rng.random() < 0.1:
            size = self.rng.choice([0, 1, len(data) // 2, len(data) - 1])
            data = self.rng.choice([data[:size], data + self.rng.randbytes(10_000), data + b"\0" * 100_000])
            said.append(f"{len(data)} bytes of data")
        head = b"".join(card[:_CARD].ljust(_CARD) for card in (*cards, end))
        return "; ".join(said), head + b" " * (-len(head) % _BLOCK) + data

    def _index(self, cards: list[bytes]) -> int:
        return self.rng.randrange(len(cards))

    def _name(self, card: bytes) -> str:
        return card[:8].decode("latin-1").strip()

    def _value(self, cards: list[bytes]) -> str:
        """Another value, perhaps of another type."""
        at = self._index(cards)
        name = cards[at][:8]
        value = self.rng.choice(
            [
                b"T",
                b"F",
                b"0",
                b"-1",
                b"1.5",
                b"9" * 60,
                b"-" + b"9" * 30,
                b"1E400",
                b"NaN",
                b"INF",
                b"'NaN     '",
                b"(1.0, 2.0)",
                b"",
                b"''",
                b"'" + b"x" * 60 + b"'",
                b"'unterminated",
                b"'a''b/c\\d'",
                b"'../../../etc'",
                b"'2026-13-45T99:99:99'",
                b"'0000-00-00'",
                b"'9999-12-31T23:59:60.999'",
                b"'DROP TABLE; --'",
                "'٣ \u00e9'".encode(),
                b"'\xff\xfe'",
                b"'\0\x1b[2J'",
                b"9223372036854775808",
                b"-9223372036854775809",
                b"1e-320",
                b"20260230",
            ]
        )
        cards[at] = name + b"= " + value
        return f"{self._name(name)} = {value!r}"

    def _lie(self, cards: list[bytes]) -> str:
        """A size or type of the image that is not so."""
        name = self.rng.choice(
            [b"BITPIX", b"NAXIS", b"NAXIS1", b"NAXIS2", b"SIMPLE", b"EXTEND", b"PCOUNT", b"GCOUNT", b"GROUPS"]
        )
        sizes = b"0 1 -1 7 8 -64 3 999 1000000000 999999999999999999 -1000000000 99999999999999999999999999"
        value = self.rng.choice([*sizes.split(), b"'x'", b"1.5", b"T", b"F", b""])
        card = name.ljust(8) + b"= " + value.rjust(20)
        for at, old in enumerate(cards):
            if old[:8] == name.ljust(8):
                cards[at] = card
                break
        else:
            cards.insert(self.rng.randrange(len(cards) + 1), card)
        return f"{name.decode()} = {value!r}"

    def _card(self, cards: list[bytes]) -> str:
        """A card more, less, again or elsewhere."""
        at, way = self._index(cards), self.rng.randrange(5)
        name = self._name(cards[at])
        if way == 0 and len(cards) > 1:
            del cards[at]
            return f"no {name}"
        if way == 1:
            cards.insert(self._index(cards), cards[at])
            return f"{name} twice"
        if way == 2:
            other = self._index(cards)
            cards[at], cards[other] = cards[other], cards[at]
            return f"{name} elsewhere"
        if way == 3:
            count = self.rng.choice([1, 2, 3000])
            cards[at : at + 1] = [cards[at], *[b"CONTINUE  '" + b"y" * 60 + b"&'"] * count]
            return f"{count} CONTINUE after {name}"
        new = self.rng.choice(
            [
                b"XTENSION= 'BINTABLE'",
                b"HIERARCH a b c = 5",
                b"COMMENT " + b"z" * 72,
                b"\xff" * 80,
                b"\0" * 80,
                b"BLANK   = 'x'",
                b"BSCALE  = 'x'",
                b"BZERO   =                1E400",
                b"ZIMAGE  =                    T",
                b"INHERIT =                    T",
                b"CHECKSUM= 'wrong'",
                b"lower   = 1",
            ]
        )
        cards.insert(at, new)
        return f"a card {new[:12]!r}"

    def _bytes(self, cards: list[bytes]) -> str:
        """Some bytes of a card changed."""
        at = self._index(cards)
        changed = bytearray(cards[at].ljust(_CARD))
        for _ in range(self.rng.choice([1, 3, 20])):
            changed[self.rng.randrange(_CARD)] = self.rng.randrange(256)
        cards[at] = bytes(changed)
        return f"bytes of {self._name(self._cards[min(at, len(self._cards) - 1)])}"
