"""Trained runs at work on archives: what they read is extracted in memory, scored, and written as it comes."""
