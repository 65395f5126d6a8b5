"""The checks that `doctor` is composed of: each adds findings to a visit, measured on the problem's own data."""
