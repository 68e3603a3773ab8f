"""Quantisation that knows the architecture: grids, calibrators, and the walk over a folder's blocks.

Shape suffixes of this package: O output channels, I input channels, C groups of a row, M calibration rows, N rows of
tokens, T tokens of a row, D hidden, E experts.
"""
