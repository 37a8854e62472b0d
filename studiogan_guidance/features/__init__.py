"""Feature networks: from images to features to statistics."""
