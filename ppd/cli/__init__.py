"""The three commands: parse, call, print."""
