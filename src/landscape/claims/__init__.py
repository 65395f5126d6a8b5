"""Published claims, one file each, pure: statement, source, thresholds fixed before any data, test, what to draw."""
