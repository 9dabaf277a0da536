"""The reference of messages, made from their models: ``docs/messages.md``.

``python -m ppd.cli.message_reference`` prints it.
"""

from __future__ import annotations

__all__ = ["write_reference"]

import ast
import functools
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator

import pydantic

from .. import _jobs, messages
from .._control_messages import ControlReply, ControlRequest, Message, Pointing
from .._web_messages import DetectorShape
from ..visit import BareVisit, FannedOutVisit
from .field_words import say_default, say_type, tidy, write_row

EXAMPLE = {
    "salIndex": 1,
    "scriptSalIndex": 3,
    "instrument": "LSSTCam",
    "groupId": "2026-11-25T04:47:59.000",
    "coordinateSystem": 2,
    "position": [150.1, 2.2],
    "startTime": 1795668514.0,
    "rotationSystem": 2,
    "cameraAngle": 90.0,
    "filters": "r_57",
    "dome": 2,
    "duration": 34.0,
    "nimages": 1,
    "survey": "BLOCK-365",
    "totalCheckpoints": 1,
    "private_sndStamp": 1795668480.0,
}
"""A nextVisit message that ppd takes, but for its age."""

_HEAD = """\
# Messages

Made from the models themselves by `python -m ppd.cli.message_reference > docs/messages.md`; a test sees that
it is current. Don't edit it.

What comes from outside is checked field by field. What can't be used is refused with all its
faults, and counted ([commands.md](commands.md#what-ppdctl-status-counts)); it changes nothing. Times are
seconds, moments Unix seconds, angles degrees. What has no default and is not needed is `null`.

## nextVisit

A visit that is going to be made, as Rubin's scheduler publishes it: a JSON object (UTF-8, 1 MiB at
most). `ppdctl submit FILE` sends the file as it is. Fields that are not listed are tolerated and
dropped.

```json
{example}
```

"""
_FLAT = """
Numbers may be text, as in a Redis stream, and `position` text such as `"[150.1, 2.2]"`. ICRS positions
are within 0 to 360 and -90 to 90 degrees, camera angles within -360 and 360. A visit is known by
its instrument, group and detectors: what was accepted is a duplicate when it comes again.

### For one detector

The same *fanned out*, with one field more: only this detector of the visit is announced.

"""
_CONTROL = """
## Requests

`ppdctl`, players and the status page ask through the socket `control.ipc` in `socket_dir`: ZeroMQ,
a DEALER that sends one frame with a JSON object and gets one back; `look.ipc` answers what changes
nothing. Who may come to which is told in [security](security.md). A request of more than 4 MiB is not
read. Unknown fields are refused. The answer to what is accepted comes when the journal has it on disk.

```json
{"kind": "control_request", "command": "pause", "detectors": [94], "reason": "CCD warm"}
```

"""
_ANSWERS = """
What each command reads besides, and what `result` has then:

"""
_REPLY = """
### Replies

"""
_CODES = {
    "ok": "done",
    "malformed": "not a request or a visit that can be understood",
    "stale": "the visit's message is older than `message_expiration`",
    "duplicate": "the visit was accepted before",
    "ignored": "no pipeline is configured for the visit, or its detector is paused",
    "unavailable": "not now: ppd drains, is paused, has no room, or something it needs does not work",
    "unknown": "there is no such visit, detector, dead letter or dataset type, or it may not be done to it",
    "forbidden": "who asks may not: see [security](security.md)",
}
_TRY_AGAIN = "`group`, `tried_again`, `accepted` (detectors), `refused` (reason by detector)"
_CACHE = "`place`, `max_bytes`, `max_pinned_bytes`, sums, `types` (one object for each dataset type)"
_COMMANDS = {
    "status": ("", "what `ppdctl status --json` prints"),
    "submit": ("`visit`, `detectors`", "`group`, `detectors`: those that were accepted"),
    "announce": (
        "`visits`",
        "`judged`: `code` and `error` of each, in their order; for those that pass on what others sent",
    ),
    "visits": ("", "`night` (day_obs) and `visits`: what `ppdctl visits --json` prints"),
    "retry": ("`group`, `detectors`, `reason`", _TRY_AGAIN),
    "replay": ("`group`, `detectors`, `reason`", _TRY_AGAIN),
    "inputs": (
        "`group`, `detector`",
        "`group`, `collections`, `detectors` (by number: `inputs`, `missing`), `looking` (not known yet)",
    ),
    "prefetch": ("`pointings`", "`pointings`: how many"),
    "retry_dead_letters": ("`entries`", "`done` (names), `refused` (reason by name)"),
    "drop_dead_letters": ("`entries`", "`done` (names), `refused` (reason by name)"),
    "drain": ("", "`drained`: whether nothing is left; ask again until it is"),
    "stop": ("`now`", ""),
    "reload": ("", "how the reload is that has begun; its `number` is for `reloading`"),
    "reloading": ("`number`", "how that reload is, or how it ended"),
    "pause": ("`detectors`, `reason`", "`all`, `detectors`: what is paused, each with `reason` and time"),
    "resume": ("`detectors`", "the same"),
    "cancel": ("`group`, `detectors`, `reason`", "`cancelled`, `over`: detectors"),
    "metrics": ("", "`text`: what Prometheus reads"),
    "detectors": ("", "what the status page draws: `detectors` by number, `visits`"),
    "show_cache": ("", _CACHE),
    "evict": ("`types`", f"`evicted`, `evicted_bytes`, `kept`; {_CACHE}"),
    "pin": ("`types`", f"`pinned`; {_CACHE}"),
    "unpin": ("`types`", f"`unpinned`; {_CACHE}"),
}
_BETWEEN = """
## Between ppd's own processes

All of them are of one version: these are no interface for others, and change without notice. They are
JSON objects, one a line on a pipe or one a frame on `children.ipc`; `kind` says which. There is no
pickle. What does not parse is refused and counted.
"""
_CONVERSATIONS: dict[str, tuple[str, ...]] = {
    "Supervisor to nursery": ("NurserySetup", "ForkRequest", "PrepareNursery", "Retire", "ShutDown"),
    "Nursery to supervisor": ("NurseryReady", "SetupFailed", "Forked", "Exited", "NurseryPrepared"),
    "Child to supervisor": (
        *("ChildReady", "ChildHeartbeat", "PhaseEvent"),
        *("PermitRequest", "PermitReturn", "ChildDone"),
    ),
    "Supervisor to child": ("PermitGrant", "RawArrived", "NoMoreRaws", "CancelWork"),
    "Supervisor to exporter": ("ExporterSetup", "Discard", "Hurry"),
    "Exporter to supervisor": ("ExporterState", "Exported", "SetAside"),
    "Supervisor to status page": ("WebSetup",),
    "Status page to supervisor": ("WebState",),
}
_PARTS: tuple[type[Message], ...] = (
    _jobs.DetectorKey,
    _jobs.Job,
    _jobs.CacheView,
    _jobs.Predecessor,
    _jobs.PipelineSummary,
    _jobs.InputType,
    messages.ExportedEntry,
    DetectorShape,
)


def write_reference() -> str:
    """Write the page.

    Returns
    -------
    text : `str`
        Markdown.
    """
    both = set(BareVisit.model_fields)
    lines = [_HEAD.replace("{example}", json.dumps(EXAMPLE, indent=2)), *_table(BareVisit)]
    lines += [_FLAT, *_table(FannedOutVisit, set(FannedOutVisit.model_fields) - both)]
    lines += [_CONTROL, *_table(ControlRequest), _ANSWERS, "| command | reads | result |", "|---|---|---|"]
    lines += [write_row(f"`{name}`", *_COMMANDS[name]) for name in _commands()]
    lines += [_REPLY, *_table(ControlReply), "", "| code | |", "|---|---|"]
    lines += [write_row(f"`{code}`", meaning) for code, meaning in _CODES.items()]
    lines += ["\n### Pointing\n", tidy(inspect.getdoc(Pointing) or ""), "", *_table(Pointing), _BETWEEN]
    for name, members in _CONVERSATIONS.items():
        lines += [f"\n### {name}\n", "| message | fields | |", "|---|---|---|"]
        lines += [_brief(getattr(messages, member)) for member in members]
    for part in _PARTS:
        lines += [f"\n### {part.__name__}\n", tidy(inspect.getdoc(part) or ""), "", *_table(part)]
    # Parts have blank lines at their ends, whatever they are put beside.
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _commands() -> tuple[str, ...]:
    return typing.get_args(ControlRequest.model_fields["command"].annotation)


def _table(model: type[pydantic.BaseModel], only: Iterable[str] | None = None) -> Iterator[str]:
    """Write a model's fields, one a row."""
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    sentences = _sentences(model)
    for name, field in model.model_fields.items():
        if only is None or name in only:
            what = say_type(field.annotation, field.metadata)
            # A kind says which message it is: it has to be there.
            default = "*needed*" if name == "kind" else say_default(field)
            yield write_row(f"`{name}`", what, default, sentences.get(name, ""))


def _brief(model: type[Message]) -> str:
    """Write a message in one row."""
    sentences = _sentences(model)
    fields = []
    for name, field in model.model_fields.items():
        if name != "kind":
            told = f": {sentences[name].rstrip('.')}" if name in sentences else ""
            fields.append(f"`{name}` ({say_type(field.annotation, field.metadata)}){told}")
    (kind,) = typing.get_args(model.model_fields["kind"].annotation)
    return write_row(f"`{kind}`", "; ".join(fields), tidy(inspect.getdoc(model) or ""))


@functools.cache
def _sentences(model: type[pydantic.BaseModel]) -> dict[str, str]:
    """Read what stands below each field in the source.

    The messages do without pydantic's ``use_attribute_docstrings``: it reads sources when they are
    imported, and whoever sends a message has to wait for that.
    """
    found: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if not (issubclass(ancestor, pydantic.BaseModel) and ancestor.__module__.startswith("ppd.")):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(body, ast.ClassDef)
        for one, after in zip(body.body, body.body[1:]):
            if (
                isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[one.target.id] = tidy(str(after.value.value)).replace("`None`", "`null`")
    return found


if __name__ == "__main__":
    sys.stdout.write(write_reference())
