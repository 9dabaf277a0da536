"""The node's shared copy of the inputs."""
