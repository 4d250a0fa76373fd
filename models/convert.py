def load_model(path, mesh, dtype):
    raise ValueError("not yet")
