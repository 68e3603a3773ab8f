"""Lets several processes train one run together."""
