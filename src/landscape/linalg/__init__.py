"""Linear algebra of symmetric operators given by matvecs: plain functions that do not import each other."""
