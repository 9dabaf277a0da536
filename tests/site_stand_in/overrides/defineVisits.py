# ruff: noqa: F821
# By group: the visits have other IDs than by any other system.
config.groupExposures = "by-group-metadata"
