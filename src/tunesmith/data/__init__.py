"""From what a person wrote to tokens: examples, rows, batches."""
