"""Clusters of feature vectors, with probabilities: the scikit-learn estimator.

``estimator`` holds its manners, ``constraints`` what it accepts, ``fitting`` the candidates of a
fit, ``proposals`` where those on landmarks start, ``evidence`` what chooses among them, ``number``
of clusters where it is open, ``units`` of columns, ``saving`` its two files.
"""

from coincide._files import ModelError
from coincide.cluster.estimator import CollisionClustering
from coincide.training.collapse import ClusteringWarning

__all__ = ["ClusteringWarning", "CollisionClustering", "ModelError"]
