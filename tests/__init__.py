"""Tests of the relay; a package so that `tests.support` is this one and no installed namesake."""
