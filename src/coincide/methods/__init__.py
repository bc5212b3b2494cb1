"""Methods: a pseudo-label rule and a loss, one file each."""

from __future__ import annotations

from coincide.methods.collision import CollisionMethod

__all__ = ["CollisionMethod"]
