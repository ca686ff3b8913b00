"""Networks as pure tensor programs: no files, no data pipeline, no training framework."""
