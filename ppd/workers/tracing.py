"""A child as part of its visit's trace."""

from __future__ import annotations

__all__ = ["join_trace"]

import os


def join_trace(traceparent: str) -> None:
    """Let spans of this process, and of those that it starts, be part of a trace.

    Parameters
    ----------
    traceparent : `str`
        Context, as W3C's Trace Context has it; empty: there is no trace.

    Notes
    -----
    ppd makes no spans here: the supervisor makes those of the legs.  But what
    a site's tasks trace has its place below its detector-visit, by the
    current context, and in other programs by ``TRACEPARENT``.
    """
    if not traceparent:
        os.environ.pop("TRACEPARENT", None)
        return
    os.environ["TRACEPARENT"] = traceparent
    try:
        from opentelemetry import context, propagate
    except ModuleNotFoundError:
        return  # then no task can trace by it
    context.attach(propagate.extract({"traceparent": traceparent}))
