"""The parts of `stellarbyte convert verify`: rows to compare on, both sides of a comparison, and its picture."""
