"""What commands show of results: JSON, one, many, warnings."""
