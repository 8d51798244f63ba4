"""Fine-tune a language model on your task, and know that it got better."""
