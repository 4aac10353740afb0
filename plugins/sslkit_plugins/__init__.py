"""The parts that come with sslkit, found by entry point like anybody's. See plugins/README.md."""
