"""Transformers' own architectures that a model here can come from and go to, one file each.

A new family is a file like these and its name in `registry.py`.
"""
