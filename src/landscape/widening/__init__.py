"""The analysis `widen`: neurons split, what that opens, foretold and measured."""
