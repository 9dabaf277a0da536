# ruff: noqa: F821
# An override that ppd overrides in turn.
config.transfer = "move"
