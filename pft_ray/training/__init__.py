"""DP-SGD in one process: models, per-record clipping, the private step, the loop."""
