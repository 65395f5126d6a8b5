"""Descents to critical points: plain functions of callables, many starts at once where that pays."""
