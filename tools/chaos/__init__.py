"""Drivers that break things on purpose and check that nothing acknowledged is lost."""
