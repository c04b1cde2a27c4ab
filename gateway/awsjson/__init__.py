"""A small runtime for an AWS rest-json API: its published model, its wire in both directions, its signatures."""
