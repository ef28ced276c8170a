"""Recipes of the paper and of the embedded model: YAML files, each runs as it stands."""
