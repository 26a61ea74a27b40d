"""What a recipe needs on named hardware: memory, time and GPU hours, from a written model (docs/capacity.md)."""
