"""Schedulers of diffusers, one a file; `common` is what they share."""
