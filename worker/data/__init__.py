"""Data plane: index, plan, reader, decoding, packing."""
