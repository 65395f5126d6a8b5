"""A worker process: a function and its arguments come pickled on stdin, from the process that started it."""

from __future__ import annotations

import pickle
import sys

if __name__ == "__main__":
    function, arguments = pickle.load(sys.stdin.buffer)
    function(*arguments)
