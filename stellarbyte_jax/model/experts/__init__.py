"""Mixture of experts: the router, and the experts on one device and on many."""
