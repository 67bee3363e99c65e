"""Tasks with known answers and worked steps, and a small MoGE model that learns to think on them."""
