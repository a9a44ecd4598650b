"""The emulator's Batch route: uploaded files, batches and their result files."""
