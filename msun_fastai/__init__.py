"""MSUN for fastai: image classifiers that are good at every input size.

Importing this package imports neither torch nor fastai; `from msun_fastai.all import *` brings
the Python API, and the command line imports what a verb needs when it runs.
"""

__version__ = "0.1.0"
