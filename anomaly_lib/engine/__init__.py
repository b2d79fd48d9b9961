"""What a hand-written loop calls. Helpers return values; the loop keeps control.

Nothing is re-exported here: `from anomaly_lib.engine.run import Run` says where a thing lives.
"""
