"""Judging: a model grades documents where no person did, and its grades are compared with people's."""
