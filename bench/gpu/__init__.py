"""Measurements on one GPU, next to what the hardware allows: `python -m bench.gpu`."""
