"""How each kind of module runs under per-record clipping, one file a kind."""
