"""The networks: mapping, backbone, decoder, super-resolution, discriminators."""
