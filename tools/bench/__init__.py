"""Measurements of our parts against named peers, each in one run: a table, then one line of JSON."""
