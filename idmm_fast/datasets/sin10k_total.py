"""SIN-10k, not balanced: 10,000 random training photographs of ImageNet, whatever their class (--total, --seed).

Needs ImageNet's files.
"""

from . import sin10k

SOURCE = sin10k.SOURCE
BASE = sin10k.BASE
TOTAL = 10000
prepare, read = sin10k.prepare, sin10k.read
