"""Many networks of one shape at once."""
