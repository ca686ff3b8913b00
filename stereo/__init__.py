"""Stereo-depth networks: specs, data, training, evaluation, export and engines."""

__version__ = "0.1.0"
