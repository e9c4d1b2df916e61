"""Measures views, training steps, edits and native operations against what the machine could do."""
