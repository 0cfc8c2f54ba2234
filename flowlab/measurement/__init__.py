"""Measurement: an ensemble of networks, a batch forward, a cotangent backward, one table."""
