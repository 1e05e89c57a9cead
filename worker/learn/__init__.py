"""The mathematics of training: a step, its loss, an evaluation. Knows nothing of jobs or stores."""
