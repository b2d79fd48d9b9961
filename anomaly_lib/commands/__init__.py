"""The commands of `anomaly-lib` (`python -m anomaly_lib`): what each takes, does and says. `table.py` lists them."""
