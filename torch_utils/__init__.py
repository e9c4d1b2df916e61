"""Plumbing that knows torch and nothing of faces."""
