"""From a user's rows to a dataset artifact, and back.

Names are imported from their modules: `config`, `prepare`, `dataset`, `schema`.
"""
