"""Evidence about runs: what was claimed, what was released, what it is worth."""
