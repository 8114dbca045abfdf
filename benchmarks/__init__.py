"""Measures what a proxy in front of an AI provider costs: CPU per call and per event, added latency, memory.

README.md tells how to run it and how to read what it prints. Needs Linux and a C compiler; imports nothing of relay.
"""
