"""How much one request may ask for: the supervisor deals with it in one turn."""

from __future__ import annotations

MAX_ANNOUNCED = 64
"""Announcements."""
MAX_ENTRIES = 20
"""Dead letters."""
MAX_DETECTORS = 1000
"""Detectors."""
MAX_REASON = 500
"""Characters of an operator's reason."""
MAX_TYPES = 100
"""Dataset types."""
MAX_TYPE_NAME = 200
"""Characters of a dataset type's name."""
