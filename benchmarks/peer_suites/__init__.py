"""Peers' own test suites against our operators and algorithms, run by hand; see `run.py`."""
