"""Plumbing that knows no torch: typed configuration, atomic files, errors for users."""

__version__ = "0.1.0"
