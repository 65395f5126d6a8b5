"""Critical points: certified, descended to, escaped from."""
