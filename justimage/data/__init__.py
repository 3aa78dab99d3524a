"""Data: raw arrays on disk, what they mean, and the order in which training sees them."""
