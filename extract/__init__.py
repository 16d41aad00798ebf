"""Stage one: a video (or a store) in, rows of features out."""
