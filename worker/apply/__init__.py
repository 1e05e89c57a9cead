"""Use of a finished model: evaluation on labeled sets, prediction of unlabeled ones."""
