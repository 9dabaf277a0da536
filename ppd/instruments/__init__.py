"""Instrument descriptions that need no compiled stack."""
