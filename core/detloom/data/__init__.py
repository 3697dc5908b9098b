"""Reading, checking, augmenting and batching pictures and their boxes."""
