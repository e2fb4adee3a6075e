"""Ray edge: the coordinator actor, workers, and the driver of a run."""
