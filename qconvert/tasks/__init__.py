"""How outputs become predictions, and predictions and truth become metrics."""
