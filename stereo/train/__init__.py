"""Training: optimiser and schedules, Lightning module, checkpoints, records, the recipe `fit`."""
