"""`python -m landscape`: the same as the `landscape` command; local workers are started this way."""

from __future__ import annotations

from landscape.cli import main

if __name__ == "__main__":
    main()
