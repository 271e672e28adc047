"""A run's configuration: its fields, how a command line or a YAML file becomes one, and specifications."""
