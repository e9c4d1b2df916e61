"""Editing a portrait: region, blending, the optimisation, inversion, export and report (method section 4)."""
