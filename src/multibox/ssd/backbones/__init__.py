"""The networks that yield the feature maps."""
