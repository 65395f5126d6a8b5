"""Files of weights and what belongs to them, into a Problem."""
