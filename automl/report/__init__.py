"""The report of a study: one offline page with its numbers beside it."""
