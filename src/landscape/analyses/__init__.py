"""Analyses: (problem, settings) -> frozen result; they know no files and print nothing."""
