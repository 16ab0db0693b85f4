"""Weight files: reading released ones by key maps, reading and writing our own; always strict, never running code."""
