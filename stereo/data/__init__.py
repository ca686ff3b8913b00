"""Stereo data: annotation files, encodings, dataset classes, augmentation, loading, generator.

Arrays are row-major, H rows by W columns. Disparity is in pixels of the left image, positive: left
pixel (x, y) matches right pixel (x - d, y). Unknown ground truth is +inf.
"""
