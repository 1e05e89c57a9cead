"""The preflight: all that a job needs of its place, looked at in seconds and without a GPU."""
