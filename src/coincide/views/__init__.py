"""Views: random changes of a row that should not change its class.

``vectors`` has those of feature vectors, ``images`` those of images by name, made of the random
changes in ``transforms``.
"""
