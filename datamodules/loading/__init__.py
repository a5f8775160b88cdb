"""From shards to batches: the order of samples, the stream, and its way across processes."""
