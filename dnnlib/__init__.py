"""Plumbing that knows no torch: typed configuration, atomic files, errors for users."""
