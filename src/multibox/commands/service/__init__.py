"""What `serve` consists of: the HTTP application, its limits, batching, and the server."""
