"""Thin fastai callbacks over the pure functions; `msun_cbs` in `learner.py` puts them together."""
