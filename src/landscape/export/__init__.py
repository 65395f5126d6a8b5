"""Results and surfaces in the formats of other programs."""
