"""Children of an agent: each has a keeper, which starts it, hears it, ends it, and leaves nothing of it."""
