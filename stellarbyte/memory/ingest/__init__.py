"""Cuts documents into passages for a memory: what belongs together stays together, and each says where it stands."""
