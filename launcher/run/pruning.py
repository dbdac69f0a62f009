"""Whether a trial of a search is worth going on with: from its record and those of the sweep's other trials."""

PRUNED = "pruned"  # why such a run stopped, in stopped.json
