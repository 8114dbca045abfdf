"""Tests of a whole relay: a real process, its command line and sockets, official SDKs and raw peers around it."""
