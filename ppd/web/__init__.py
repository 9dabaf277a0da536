"""The status page: a process of its own that asks the supervisor and reads what is on disk."""
