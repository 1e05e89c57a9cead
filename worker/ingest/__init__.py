"""The way in, from any labeled source to an indexed data set."""
