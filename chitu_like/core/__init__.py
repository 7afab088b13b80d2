"""The words everyone speaks: requests, batches, outputs, errors. Imports nothing of ours."""
