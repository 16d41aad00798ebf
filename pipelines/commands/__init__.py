"""What each command does; one module a stage. Called by `pipelines.cli` with the parsed arguments."""
