"""H v: products of a batch, the operator, its plan, its eigenpairs, and how far all of that is off."""
