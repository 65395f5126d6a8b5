"""Negative eigenvalues as coin flips: experiments and verdicts."""
