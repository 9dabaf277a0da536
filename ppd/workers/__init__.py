"""The nursery and the children forked from it."""
