"""The parts that the spectrum analysis is composed of: each takes an objective or an operator and returns numbers."""
