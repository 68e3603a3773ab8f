"""Records what a run does while it trains, and shows it."""
