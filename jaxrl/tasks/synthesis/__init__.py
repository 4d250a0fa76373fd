"""Questions with tests made from code, and the filter that drops wrong tests (AceCoder, arXiv 2502.01718)."""
