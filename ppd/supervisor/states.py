"""The states of a detector-visit, for those who can't wait for the middleware."""

from __future__ import annotations

__all__ = ["STATES"]

STATES = ("accepted", "waiting", "forked", "ready", "running", "handed_over", "exported", "failed")
"""In the order of a detector-visit's life, as `ppd.supervisor.table.State` has them; that takes
seconds to import."""
