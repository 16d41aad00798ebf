"""Datasets that the workflow renders for itself: no download, known truth."""
