"""Other implementations' weights files, read and written without executing anything in them."""
