"""From piles of images to shards: what `dinojax.ingest` is made of."""
