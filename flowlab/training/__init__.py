"""Training: many passes, with an update of the held parameters after each."""
