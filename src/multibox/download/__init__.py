"""Downloads published datasets. No other package opens network connections."""
