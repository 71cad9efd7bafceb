"""Stores of images, one file a format. No key and no scheme here: what is written is what the pipeline hands over."""
