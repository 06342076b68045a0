"""Drivers that break things on purpose: each prints its seed and exits 1 if anything did not hold."""
