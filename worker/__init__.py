"""Stateless batch worker that fine-tunes torchvision image classifiers on clusters."""

__version__ = "0.1.0"
