"""Images from anywhere as one array of bytes; :mod:`~coincide.data.images.reading` has the door."""

from coincide.data.images.reading import ImageRows, ImageSource, channel_statistics, read_images

__all__ = ["ImageRows", "ImageSource", "channel_statistics", "read_images"]
