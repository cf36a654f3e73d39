"""Arrays in, numbers out: metrics, comparison statistics, exploration and inspection."""
