"""`train`: sweeps of runs into checkpoints."""
