"""From frames to tokens: `observe` computes them, `cache` keeps them, `source` gives both behind one interface."""
