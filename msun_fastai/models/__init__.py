"""Networks: backbones, how a stem shrinks, and the one body of all methods."""
