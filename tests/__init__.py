import utils_folder  # noqa: F401  (silences gym before any test imports it: pytest resets warning filters)
