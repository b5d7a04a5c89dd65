"""Average precision by the official protocols. No network is known here."""
