"""Instruments for tests: scripted peers, raw clients, faulty lines, and plain oracles of compiled code."""
