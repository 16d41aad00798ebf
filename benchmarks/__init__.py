"""Speed as ratios, each measured in one run against a named peer or ceiling. Nothing here is a test."""
