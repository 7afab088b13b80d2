"""The words everyone speaks: requests, batches, outputs, errors, model shapes."""
