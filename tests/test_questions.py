"""What another thread answers: to whom, and what he is told who has waited for too long."""

from __future__ import annotations

from ppd.messages import ControlReply
from ppd.supervisor.questions import Questions

REPLY = ControlReply(ok=True, result={"types": []})


def test_each_gets_his_answer() -> None:
    questions = Questions(60.0)
    first, second = questions.ask([b"a"]), questions.ask([b"b"])
    assert questions.answered(second, REPLY) == [([b"b"], REPLY)]
    assert questions.answered(second, REPLY) == []
    assert questions.overdue() == []
    assert questions.answered(first, REPLY) == [([b"a"], REPLY)]


def test_an_answer_that_comes_too_late() -> None:
    questions = Questions(-1.0)
    number = questions.ask([b"a"])
    ((envelope, reply),) = questions.overdue()
    assert (envelope, reply.ok, reply.code) == ([b"a"], False, "unavailable")
    assert questions.overdue() == []
    assert questions.answered(number, REPLY) == []
