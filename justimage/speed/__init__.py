"""Speed: how long training and sampling take here, what of, and against the same network written plainly."""
