"""From the runs of a sweep to the evidence of a claim: which experiments on which runs, put aside as they finish."""
