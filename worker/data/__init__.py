"""The data plane, from tars in the store to batches: index, plan, reader, decoding, packing."""
