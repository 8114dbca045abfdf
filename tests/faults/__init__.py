"""Whole relays under faults: killed, cut, raced, starved. Each test ends with the books.

The short forms run with all other tests; `make soak` runs the long ones.
"""
