"""Is it right, says a truth that is known: planted channels, contestants, leaderboards."""
