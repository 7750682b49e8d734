"""SIN-10k, not balanced: 10,000 training photographs of ImageNet drawn at random regardless of class (--total, --seed). Needs ImageNet's files."""

from . import sin10k

SOURCE = sin10k.SOURCE
BASE = sin10k.BASE
TOTAL = 10000
prepare, read = sin10k.prepare, sin10k.read
