"""``lcm-arith generate``: pictures of prompts, without a store."""
