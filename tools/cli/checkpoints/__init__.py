"""Commands about checkpoints: what they are, how they are made, what they would do."""
