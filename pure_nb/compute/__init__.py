"""How it runs, and where results are: one pass, blocks of pairs, the store, clusters."""
