"""Networks: net(z, t, y) -> (B, C, *S). They know nothing of noise, guidance, losses, averages or devices."""
