"""Experiments that claims need: stacks of networks in, arrays out; nothing here decides anything."""
