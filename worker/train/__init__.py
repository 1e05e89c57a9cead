"""One rank of a training job, and what surrounds it."""
