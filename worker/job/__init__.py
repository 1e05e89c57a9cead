"""A job before it runs: data sets opened, model built, rates assigned; `worker plan`."""
