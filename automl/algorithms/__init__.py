"""Samplers propose parameters, rungs end trials early; both are functions of the event log."""
