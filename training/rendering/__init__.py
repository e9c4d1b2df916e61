"""From a camera and a field to pictures."""
