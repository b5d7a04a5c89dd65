"""Average precision by the official protocols. This package does not import any network."""
