"""Joins the rooms: command line, config, the plan that the Snakefile follows, and the report."""
