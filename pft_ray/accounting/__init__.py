"""The mathematics of privacy loss: no state, no clock, no input or output."""
