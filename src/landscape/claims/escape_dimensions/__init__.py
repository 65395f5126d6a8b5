"""Escape dimensions opened by widening: experiments and verdicts."""
