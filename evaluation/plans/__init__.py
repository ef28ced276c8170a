"""What a grid draws: rows, λ, axes, prompts and seeds, recipes."""
