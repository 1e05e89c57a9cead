"""The life of one rank: resume, train, evaluate, commit, finish."""
