"""Small networks that look at portraits: what they read, whom they recognise, how near a sentence is."""
