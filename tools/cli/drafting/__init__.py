"""Commands about drafts: measure them, tune them, train a head, keep answers to draft from."""
