"""The loop, its schedule, its batches and its checkpoints."""
