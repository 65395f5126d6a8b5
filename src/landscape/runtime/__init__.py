"""How a long job runs: memory, arithmetic, signals, whole files, resuming, workers, progress."""
