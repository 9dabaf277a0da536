"""What an operator asks of the cache; answered by the thread that owns it."""

from __future__ import annotations

__all__ = ["serve_cache"]

import dataclasses
import logging
from typing import Any

from ..cache.holdings import PINNED_SHARE
from ..cache.repo import CacheRepo
from ..errors import PpdError
from ..messages import ControlReply, ControlRequest

_LOG = logging.getLogger(__name__)


def serve_cache(cache: CacheRepo, request: ControlRequest) -> ControlReply:
    """Do what a request asks of the cache.

    Parameters
    ----------
    cache : `ppd.cache.repo.CacheRepo`
        The cache.
    request : `ppd.messages.ControlRequest`
        ``show_cache``, ``evict`` (without types: all that is not pinned),
        ``pin`` or ``unpin``.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        What there is, and what was done.
    """
    try:
        if request.command == "evict":
            done = _evict(cache, request.types)
        elif request.command == "pin":
            cache.pin(request.types)
            done = {"pinned": list(request.types)}
        elif request.command == "unpin":
            done = {"unpinned": [name for name in request.types if cache.unpin(name)]}
        else:
            done = {}
    except PpdError as e:
        return ControlReply(ok=False, code="unknown", error=str(e))
    except Exception as e:
        _LOG.exception("The cache could not do what an operator asked.")
        return ControlReply(ok=False, code="unavailable", error=f"{type(e).__name__}: {e}")
    if done:
        _LOG.warning("An operator has told the cache to %s: %s", request.command, done)
    return ControlReply(ok=True, result={**done, **_describe(cache)})


def _evict(cache: CacheRepo, types: tuple[str, ...]) -> dict[str, Any]:
    held = {t.name: t for t in cache.by_type()}
    strange = [name for name in types if name not in held]
    if strange:
        raise PpdError(f"The cache has nothing of {', '.join(map(repr, strange))}.")
    pinned = [name for name in types if held[name].pinned]
    if pinned:
        raise PpdError(f"{', '.join(map(repr, pinned))} is pinned; ppdctl cache unpin lets it go.")
    chosen = set(types) or {name for name, t in held.items() if not t.pinned}
    count, size = cache.evict(chosen)
    kept = sum(held[name].datasets for name in chosen) - count
    return {"evicted": count, "evicted_bytes": size, "kept": kept}


def _describe(cache: CacheRepo) -> dict[str, Any]:
    statistics = cache.statistics()
    return {
        "place": str(cache.place),
        "max_bytes": cache.max_bytes,
        "max_pinned_bytes": int(PINNED_SHARE * cache.max_bytes),
        **dataclasses.asdict(statistics),
        "types": [dataclasses.asdict(t) for t in cache.by_type()],
    }
