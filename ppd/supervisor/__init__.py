"""The daemon that accepts visits, feeds children and exports outputs."""
