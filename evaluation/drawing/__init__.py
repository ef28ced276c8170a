"""Makes the pictures of a plan: vectors mixed, trajectories shared, each picture stored once."""
