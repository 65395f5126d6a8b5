"""Measurements on a GPU that is at hand for minutes: `make gpu-wheels`, `make gpu`, `make gpu-page`."""
