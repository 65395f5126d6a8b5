"""The analysis `slice`: the loss along directions through a point."""
