"""The mathematics of training: a step, its loss, an evaluation; independent of jobs and stores."""
