from tests.tiny_judges import clip, generator, identity, network, reader

__all__ = ["clip", "generator", "identity", "network", "reader"]  # fixtures by being imported
