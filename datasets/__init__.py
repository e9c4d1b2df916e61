"""Pictures, masks and cameras coming in."""
