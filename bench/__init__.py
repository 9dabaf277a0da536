"""Benchmark: ppd's way of getting inputs ready, and one process per detector's."""
