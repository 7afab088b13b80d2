"""One rank: it turns scheduled batches into sampled tokens. It decides nothing and frees nothing."""
