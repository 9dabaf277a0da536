"""Pipeline tasks of the demo observatory."""
