"""Pictures made by the project itself, with exact boxes: what a first run learns from.

Tables with coins, dice, keys, leaves and mugs among other things, drawn from random numbers.
"""

from detloom.scenes.compose import CLASSES, Scene, draw_scene
from detloom.scenes.writing import write_scenes

__all__ = ["CLASSES", "Scene", "draw_scene", "write_scenes"]
