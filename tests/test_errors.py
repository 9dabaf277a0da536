"""What errors say of themselves."""

from __future__ import annotations

import itertools

from ppd.errors import one_line, with_cause


def _raised(*errors: BaseException) -> BaseException:
    """The first, raised from the second, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b"), 3) == "a b"


def test_the_cause_is_told() -> None:
    """Though the text of what was raised is cut."""
    disk = OSError(28, "No space left on device")
    error = _raised(RuntimeError("Failed to serialize " + "x" * 1000), LookupError("between"), disk)
    told = with_cause(error, 100)
    assert told.startswith("RuntimeError: Failed to serialize xxx")
    assert told.endswith("x (from OSError: [Errno 28] No space left on device)")
    assert len(told) < 200


def test_what_says_it_itself_is_not_told_twice() -> None:
    assert with_cause(ValueError("bad")) == "ValueError: bad"
    assert with_cause(_raised(RuntimeError("lost: disk full"), OSError("disk full"))) == (
        "RuntimeError: lost: disk full"
    )


def test_causes_in_a_circle() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert with_cause(one).startswith("ValueError: one")
