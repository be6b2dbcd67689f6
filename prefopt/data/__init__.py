"""From raw rows to packed batches; each file is one arrow of that way."""
