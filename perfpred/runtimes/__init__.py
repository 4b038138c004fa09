"""What builds and runs engines: one module a runtime."""
